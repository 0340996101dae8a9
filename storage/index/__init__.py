"""The index: which instances are held, in what state, with which objects. The only user of SQLAlchemy.

Rows follow bytes: an object is durable in the store before its row is committed here, so that an orphan file is the
worst a crash can leave. Claims on work are rows with a lease; nothing here assumes a single process.
"""

from storage.index.connection import connect, migrate
from storage.index.holdings import Index

__all__ = ["Index", "connect", "migrate"]
