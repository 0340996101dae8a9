"""Originals: the form in which each is held, and the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from storage.records.renditions import StoredRendition


class OriginalForm(StrEnum):
    """How an original is held."""

    VERBATIM = "verbatim"
    """As the received file itself."""
    PACKED = "packed"
    """Losslessly compressed (storage/formats/packed_original.py); unpacking gives the received bytes."""
    PURGED = "purged"
    """Removed by retention; the reconstruction that was verified against it remains."""


class Tier(StrEnum):
    """Which object store holds an original."""

    HOT = "hot"
    """``storage.root``."""
    COLD = "cold"
    """``originals.path``."""


@dataclass(frozen=True)
class HeldOriginal:
    """How and where one original is held. ``note``: why it is not packed. A purged original has no object."""

    instance_key: int
    original_digest: str
    form: OriginalForm
    tier: Tier
    object_digest: str
    object_bytes: int
    note: str
    held_since: datetime
    restored_at: datetime | None
    purged_at: datetime | None

    @property
    def purged(self) -> bool:
        return self.form is OriginalForm.PURGED


@dataclass(frozen=True)
class OriginalClaim:
    """A lease on one original, to pack or move it."""

    original: HeldOriginal
    sop_instance_uid: str
    owner: str
    attempts: int


@dataclass(frozen=True)
class Purgeable:
    """An original that retention may remove: its image is verified, and it is old enough, not pinned, not on hold."""

    original: HeldOriginal
    sop_instance_uid: str
    study_instance_uid: str
    rendition: StoredRendition


@dataclass(frozen=True)
class OriginalTotals:
    """Originals for ``latent-pacs status``, in counts and bytes on disk.

    ``cold``: the verbatim and packed originals that are in the cold store.
    """

    verbatim: int
    verbatim_bytes: int
    packed: int
    packed_bytes: int
    cold: int
    cold_bytes: int
    purged: int
    to_pack: int
