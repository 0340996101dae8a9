"""Proves that temporary files of an archive are made on its own disk: a rename to objects/ needs one file system."""

from __future__ import annotations

import ast

from tests.support.paths import ROOT, modules

LAYERS = ("node/app/", "node/archive/", "node/reports/", "storage/objects/")
ELSEWHERE = ["node/archive/rendered_cache.py", "storage/objects/store.py"]
"""Files with one call for copies that are only read, if the disk is full or read-only."""


def test_temporary_files_have_a_folder() -> None:
    found: dict[bool, list[str]] = {True: [], False: []}
    for path in modules():
        name = str(path.relative_to(ROOT))
        if name.startswith(LAYERS):
            for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(one, ast.Call) and ast.unparse(one.func).startswith("tempfile."):
                    found[any(word.arg == "dir" for word in one.keywords)].append(name)
    assert len(found[True]) > 8
    assert sorted(found[False]) == ELSEWHERE
