"""The index: which instances are held, in which state, with which objects. The only user of SQLAlchemy.

An object is durable in the store before its row is committed here, so a crash leaves an orphan file at worst. A node
and any number of commands use one index. They claim work by leases on rows, and the lease of a killed process expires.
"""

from storage.index.connection import connect, migrate
from storage.index.holdings import Index
