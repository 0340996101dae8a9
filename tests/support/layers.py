"""States which packages of node and storage may import which (docs/ARCHITECTURE.md)."""

from __future__ import annotations

from pathlib import Path

from tests.support.paths import ROOT

LAYERS = {
    "storage.dicom": ["storage.dicom"],
    "storage.formats": ["storage.dicom", "storage.formats"],
    "storage.objects": ["storage.objects"],
    "storage.index": ["storage.dicom", "storage.formats", "storage.objects", "storage.index"],
    "storage.backup": ["storage.objects", "storage.index", "storage.backup"],
    "storage.migrations": ["storage.index"],
    "storage": [],
    "node.config": ["storage", "node.config"],
    "node.fidelity": ["storage", "node.fidelity"],
    "node.upscalers": ["storage", "node.config", "node.fidelity", "node.codec", "node.upscalers"],
    "node.codec.encode": ["storage", "node.config", "node.fidelity", "node.upscalers", "node.codec"],
    "node.codec": ["storage", "node.config", "node.fidelity", "node.upscalers", "node.codec!"],
    "node.training": ["storage", "node.config", "node.fidelity", "node.upscalers", "node.codec", "node.training"],
    "node.workers": ["storage", "node.config", "node.fidelity", "node.upscalers", "node.codec", "node.workers"],
    "node.archive": ["storage", "node.config", "node.upscalers", "node.codec", "node.workers", "node.archive"],
    "node.dimse": ["storage", "node.config", "node.archive", "node.dimse"],
    "node.reports": ["storage", "node.reports"],
    "node.jobs": ["storage", "node.config", "node.archive", "node.reports", "node.jobs"],
    "node.validation": [
        *("storage", "node.config", "node.fidelity", "node.workers", "node.archive", "node.reports", "node.jobs"),
        "node.validation",
    ],
    "node.metrics": ["storage", "node.config", "node.codec", "node.workers", "node.archive", "node.metrics"],
    "node.app": [
        *("storage", "node.config", "node.upscalers", "node.codec", "node.training", "node.workers", "node.archive"),
        *("node.dimse", "node.reports", "node.jobs", "node.validation", "node.metrics", "node.app"),
    ],
    "node.cli": [
        *("storage", "node.config", "node.fidelity", "node.upscalers", "node.codec", "node.training", "node.workers"),
        *("node.archive", "node.dimse", "node.reports", "node.jobs", "node.validation", "node.app", "node.cli"),
    ],
}
"""For each layer, the packages that it may import. An entry that ends in ``!`` allows its modules, not its packages.
The modules of ``storage`` itself (errors, records and such) may be imported by every layer."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
