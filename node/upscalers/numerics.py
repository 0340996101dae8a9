"""Numerics: everything apart from the model that can change a grey level; each rendition records it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigError

if TYPE_CHECKING:
    import torch


def numerics_of(device: torch.device, dtype: str) -> dict[str, str]:
    """Device, dtype, library versions, the vector extensions that torch uses on this CPU, and the GPU."""
    import torch

    found = {
        "device": device.type,
        "dtype": dtype,
        "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),  # a plain str: unpickling torch's own class would import torch
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "imagecodecs": version("imagecodecs"),
    }
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        found |= {"gpu": torch.cuda.get_device_name(device), "cudnn": str(cudnn.version())}
    return found


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA if there is a GPU. Raises ConfigError if it cannot be used."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason}); give auto or cpu, in reconstruct.device or with --device"
        ) from error
    return device
