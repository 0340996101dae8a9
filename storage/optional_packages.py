"""Packages that one feature needs and that only an extra of ``latent-pacs`` installs (pyproject.toml)."""

from __future__ import annotations

from importlib.util import find_spec

from storage.errors import ExtraMissing

EXTRAS = {"sd-x2": ("diffusers", "transformers"), "validation": ("optuna", "piq")}
"""The packages that each extra installs, by their import names."""


def require_extra(extra: str, feature: str) -> None:
    """Raise ExtraMissing if a package of ``extra`` is not installed. Imports none of them."""
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"{feature} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            f"run `pip install 'latent-pacs[{extra}]'`"
        )
