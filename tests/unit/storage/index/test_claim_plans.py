"""Proves that a claim takes the next row by an index, and does not sort a whole backlog for each of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from storage.index import Index
from storage.index.reverifications import Reverifications, ReverificationTerms
from tests.support.index_rows import url_of

TERMS = ReverificationTerms("mammo", "ab" * 32, "steps 0", True, "terms")
CLAIMS: dict[str, Callable[[Index], object]] = {
    "encode": lambda index: index.claim("owner", 60),
    "pack": lambda index: index.originals.claim_to_pack("owner", 60),
    "move": lambda index: index.originals.claim_to_move("owner", 60, packed_first=True),
    "reverify": lambda index: Reverifications(index.engine).claim(TERMS, "owner", 60, after=7, most=3),
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(url_of(tmp_path))
    yield opened
    opened.close()


@pytest.mark.parametrize("name", CLAIMS)
def test_no_claim_sorts_the_backlog(index: Index, name: str) -> None:
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    event.listen(index.engine, "before_cursor_execute", explain)
    CLAIMS[name](index)
    event.remove(index.engine, "before_cursor_execute", explain)
    assert plans
    assert not [plan for plan in plans if "TEMP B-TREE" in plan], plans
