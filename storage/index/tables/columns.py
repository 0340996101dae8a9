"""The metadata of all tables, and functions that make tables and columns."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table
from sqlalchemy.schema import SchemaItem

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def table(name: str, *parts: SchemaItem, sqlite_autoincrement: bool = False) -> Table:
    return Table(name, metadata, *parts, sqlite_autoincrement=sqlite_autoincrement)


def column(name: str, kind: Any, *, nullable: bool = False, **options: Any) -> Column[Any]:
    """A column. ``kind``: its type, or the key that it refers to. Text is compared by code point, which ranges and
    prefixes need; PostgreSQL would compare by locale."""
    if isinstance(kind, String):
        kind = kind.with_variant(String(kind.length, collation="C"), "postgresql")
    return Column(name, kind, nullable=nullable, **options)


Key = Integer().with_variant(BigInteger, "postgresql")


def lease_columns() -> tuple[Column[Any], Column[Any]]:
    """The columns of storage/index/lease.py: who works on a row, and until when (seconds since the epoch)."""
    return (
        column("lease_owner", String(100), nullable=True),
        column("lease_until", Float, nullable=True),
    )
