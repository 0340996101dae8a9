"""``latent-pacs sbom``: lists the installed packages as a CycloneDX bill of materials.

``make sbom`` uses cyclonedx-py instead if it is installed; ``make audit`` compares the versions with the advisories of
pip-audit.
"""

from __future__ import annotations

from importlib.metadata import Distribution, distributions
from typing import Any

from node.cli.options import print_json

SPECIFICATION = "1.5"


def sbom() -> None:
    """Print a CycloneDX bill of materials (JSON): every installed package, with its version and licence."""
    print_json(bill_of_materials())


def bill_of_materials() -> dict[str, Any]:
    """CycloneDX JSON: name, version, package URL and licence of each distribution, by name."""
    found = {one.metadata["Name"].lower(): one for one in distributions() if one.metadata["Name"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "latent-pacs", "version": _version(found)}},
        "components": [_component(name, one) for name, one in sorted(found.items()) if name != "latent-pacs"],
    }


def _version(found: dict[str, Distribution]) -> str:
    return found["latent-pacs"].version if "latent-pacs" in found else ""


def _component(name: str, one: Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "name": one.metadata["Name"],
        "version": one.version,
        "purl": f"pkg:pypi/{name.replace('_', '-')}@{one.version}",
    }
    licence = next((one.metadata[name] for name in ("License-Expression", "License") if name in one.metadata), "")
    licence = licence.partition("\n")[0][:80]
    if licence:
        component["licenses"] = [{"license": {"name": licence}}]
    return component
