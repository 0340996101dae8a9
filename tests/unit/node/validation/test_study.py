"""Proves how a validation ends if its images cannot be made any more, as after a change of libraries."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from node.config import ValidationSettings
from node.validation import study
from node.validation.study import NothingToValidate, Validation
from node.validation.terms import Arm, Fidelity, Measured, Subject
from storage.errors import RenditionMismatch


def unmade(choices: list[Any]) -> Iterator[tuple[Any, Future[Any]]]:
    for choice in choices:
        failed: Future[Any] = Future()
        failed.set_exception(RenditionMismatch("other pixels"))
        yield choice, failed


def run_of(tmp_path: Path, *subjects: Subject) -> Any:
    parts: Any = SimpleNamespace(root=tmp_path, prepare=unmade, held=lambda digest: tmp_path / digest)
    work = Validation(parts, parts, parts, ValidationSettings(folds=2), 1, parts)
    digest: Future[str] = Future()
    digest.set_result("ab" * 32)
    pool: Any = SimpleNamespace(submit=lambda *_: digest)
    run = study._ValidationRun(work, pool, lambda *_: None, lambda: False)
    run._subjects = lambda: list(subjects)  # type: ignore[method-assign]
    return run


def subject(number: int) -> Subject:
    instance = SimpleNamespace(sop_instance_uid=f"1.2.{number}", original_digest=f"{number}")
    made = SimpleNamespace(derived_uid=f"1.3.{number}", output_digest="d", base_digest="b")
    return Subject(instance, made, "ab"[number % 2], f"patient {number}")  # type: ignore[arg-type]


def test_no_image_that_can_be_measured_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NothingToValidate, match="no labelled image can be measured: RenditionMismatch: other pixels"):
        run_of(tmp_path, *map(subject, range(8))).run()


def test_pictures_that_cannot_be_made_do_not_lose_the_run(tmp_path: Path) -> None:
    """The figures may come from the cache without the pictures."""
    one = subject(1)
    figures = Fidelity(np.ones(3), np.full((1, 3), 0.5), np.zeros((1, 2), dtype=np.intp))
    one.arms[Arm.DECOMPRESSED] = Measured(np.zeros(1, dtype=np.float32), figures)
    assert run_of(tmp_path)._worst([one]) == []
