"""Asks dciodvfy whether an object is valid DICOM."""

from __future__ import annotations

from pathlib import Path

from tests.support.peers import run


def error_lines(file: Path) -> set[str]:
    """The lines that dciodvfy reports as errors. Its exit code says nothing."""
    ran = run("dciodvfy", file)
    assert "Image" in ran.output, f"dciodvfy did not recognise the object: {ran.output}"
    newer = "not a recognized standard attribute - (0x0008,0x001c)"  # Synthetic Data, younger than this dciodvfy
    return {line for line in ran.output.splitlines() if line.startswith("Error") and newer not in line}
