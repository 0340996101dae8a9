"""Numerics: everything beside the model that can move a grey level, recorded in each rendition."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from storage.errors import ConfigError

if TYPE_CHECKING:
    import torch


def cpu_numerics() -> dict[str, str]:
    """Device, dtype, library versions and the vector extensions in use by torch on this CPU."""
    import torch

    return {
        "device": "cpu",
        "dtype": "float32",
        "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),  # a class of torch's own, which would have whoever unpickles it import torch
        "scipy": version("scipy"),
        "imagecodecs": version("imagecodecs"),
    }


def device_of(name: str) -> torch.device:
    """The device that ``reconstruct.device`` names; ``auto`` is CUDA where there is one. Raises ConfigError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("reconstruct.device is cuda, and torch finds no CUDA device; use auto or cpu")
    return device
