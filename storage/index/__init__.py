"""The index: which instances are held, in which state, with which objects. The only user of SQLAlchemy.

An object is durable in the store before its row is committed here, so a crash leaves an orphan file at worst. Work is
claimed by leases on rows: a node and any number of commands use one index, and a lease outlives a killed process.
"""

from storage.index.connection import connect, migrate
from storage.index.holdings import Index
