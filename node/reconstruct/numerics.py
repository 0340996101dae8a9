"""Numerics: everything beside the model that can move a grey level, recorded in each rendition."""

from __future__ import annotations

import platform
from importlib.metadata import version


def cpu_numerics() -> dict[str, str]:
    """Device, dtype, library versions and the vector extensions in use by torch on this CPU."""
    import torch

    return {
        "device": "cpu",
        "dtype": "float32",
        "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "scipy": version("scipy"),
        "imagecodecs": version("imagecodecs"),
    }
