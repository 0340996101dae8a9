"""Makes a stopped archive with a row of every kind, which tests copy, damage and rebuild."""

from __future__ import annotations

import dataclasses
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from node.app import Node
from node.config import Settings, load
from node.dimse import client
from tests.conftest import Archive

EVERYBODY = [{"ae_title": "MODALITY", "allow": ["echo", "store", "find", "get", "commit"], "rendition": "auto"}]


def configured(folder: Path) -> Path:
    raw = {
        "node": {"host": "127.0.0.1", "port": 0, "shutdown_timeout": 5},
        "peers": EVERYBODY,
        "storage": {"root": str(folder / "archive"), "min_free": 0},
        "archivist": {"poll": 0.1, "concurrency": 1},
        "codec": {"scales": [1]},
        "gate": {"patches": {"share": 0.5}},
        "reconstruct": {"threads": 1, "upscaler": "bicubic"},
        "jobs": {name: {"enabled": False} for name in ("scrub", "purge", "reverify")},
        "audit": {"enabled": False, "reserve": "0%"},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    return config


@dataclasses.dataclass
class FilledArchive:
    """A stopped archive with a row of every kind."""

    config: Path
    uids: dict[str, str]

    @cached_property
    def settings(self) -> Settings:
        return load(self.config)

    @property
    def root(self) -> Path:
        return self.settings.storage.root

    @property
    def file(self) -> Path:
        return self.root / "index.sqlite"

    @property
    def quiet(self) -> Settings:
        """``settings`` with the archivist switched off."""
        off = self.settings.archivist.model_copy(update={"enabled": False})
        return self.settings.model_copy(update={"archivist": off})

    def twin(self, folder: Path) -> FilledArchive:
        """A copy of the archive in ``folder``."""
        shutil.copytree(self.root, folder / "archive")
        return FilledArchive(configured(folder), self.uids)

    def drop_index(self) -> None:
        for part in self.root.glob("index.sqlite*"):
            part.unlink()


def answers(made: FilledArchive) -> dict[str, Any]:
    """The answers of C-FIND, status and the lists of the command line."""
    with Node(made.quiet) as node:
        to, index, found = Archive(node, None).address, node.index, []  # type: ignore[arg-type]
        for study in (made.uids["study"], made.uids["other study"]):
            identifier = client.image_identifier(study)
            identifier.PatientID = identifier.AccessionNumber = identifier.StudyDescription = ""
            identifier.NumberOfStudyRelatedInstances = ""
            found += client.find(identifier, to, calling="MODALITY")
        for name in ("verified", "small", "held", "deleted"):
            held = index.by_uid(made.uids[name])
            if held is not None:
                names = (held.study_instance_uid, held.series_instance_uid, held.sop_instance_uid)
                found += client.find(client.image_identifier(*names), to, calling="MODALITY")
        return {
            "found": sorted(one.to_json() for one in found),
            "status": dataclasses.asdict(index.counts()),
            "originals": dataclasses.asdict(index.originals.totals()),
            "holds": index.holds.all(released=True),
            "labels": index.holds.labels(),
            "amendments": index.amendments.all(),
            "classes": index.classes.all(),
            "quarantine": index.quarantine.all(),
            "tombstone": index.tombstones.in_force(made.uids["deleted"]),
            "broken": node.archive.trail.broken(),
        }
