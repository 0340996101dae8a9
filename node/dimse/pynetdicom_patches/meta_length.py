"""Find the data set of a file by the length of its file meta information (PS3.10 7.1).

pynetdicom 3.0: ``split_dataset`` takes every element of group 0002 at the beginning for file meta information. If a
modality wrote such elements into its data set, they are not sent, and their transfer syntax chooses the context.
Upstream: not reported.
Remove when ``split_dataset`` uses File Meta Information Group Length (0002,0000).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import association

from storage.dicom.dicomfile import read_file_meta
from storage.errors import Unparseable


def install() -> None:
    """Let ``send_c_store`` find the data set of a path by that length. A file without it is left to pynetdicom."""
    sender: Any = association
    original = sender.split_dataset

    def split_dataset(path: Path) -> tuple[Dataset, int]:
        try:
            with path.open("rb") as file:
                start, meta = read_file_meta(file)
                return meta, start
        except Unparseable:
            found: tuple[Dataset, int] = original(path)
            return found

    sender.split_dataset = split_dataset
