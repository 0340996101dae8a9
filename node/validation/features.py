"""Computes frozen features by torchvision's ResNet50 (He et al., CVPR 2016), as in the paper (arXiv 2310.05299).

The features are means, over the image, of the output of the stem and of each of the four stages: 64 + 256 + 512 + 1024
+ 2048. The paper uses the last 2048. The others retain fine structure. The last stage, with a stride of 32 pixels,
retains it only if it was trained to; with random weights (``none``) it retains only coarse contrast.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ModelMissing

Float = NDArray[np.float32]

COUNT = 64 + 256 + 512 + 1024 + 2048
"""Number of features of an image."""
NONE = "none"
"""Value of ``weights`` for random weights from a fixed seed, for trials. It must be chosen explicitly."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation by which torchvision's models expect each colour channel to be normalised."""
_SEED = 0


@dataclass(frozen=True)
class Backbone:
    """The frozen network. ``digest``: SHA-256, hex, of its weights."""

    network: Any
    digest: str

    def features(self, picture: Float) -> Float:
        """Features, float32 (COUNT,), of a picture, float32 (rows, columns), 0..1, dense tissue bright."""
        grey = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32))
        colour = torch.stack([(grey - mean) / std for mean, std in zip(_MEAN, _STD, strict=True)])[None]
        net, pooled = self.network, []
        with torch.inference_mode():
            x = net.relu(net.bn1(net.conv1(colour.contiguous(memory_format=torch.channels_last))))
            pooled.append(x.mean(dim=(2, 3)))
            x = net.maxpool(x)
            for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
                x = stage(x)
                pooled.append(x.mean(dim=(2, 3)))
        return np.asarray(torch.cat(pooled, dim=1)[0].numpy())


def load_backbone(weights: str) -> Backbone:
    """Load the network. ``weights``: a name in torchvision's ResNet50_Weights, a file with a state dict, or ``none``.

    Raises ModelMissing if the weights cannot be loaded.
    """
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = resnet50(weights=None)
    if weights != NONE:
        try:
            network.load_state_dict(_from_file(Path(weights)) if Path(weights).is_file() else _published(weights))
        except RuntimeError as error:
            raise ModelMissing(
                f"jobs.validation.weights {weights}: not the weights of a torchvision ResNet50"
            ) from error
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Backbone(network, _digest(network))


def _published(name: str) -> dict[str, Any]:
    from torchvision.models import ResNet50_Weights

    known = [one.name for one in ResNet50_Weights]
    if name not in known:
        raise ModelMissing(f"jobs.validation.weights {name}: neither a file nor one of {', '.join(known)}, {NONE}")
    try:
        state: dict[str, Any] = ResNet50_Weights[name].get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise ModelMissing(
            f"jobs.validation.weights {name} cannot be downloaded ({getattr(error, 'reason', error)}): put the file "
            f"from {ResNet50_Weights[name].url} on this machine and name it there, or choose {NONE}"
        ) from error
    return state


def _from_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if not _is_published(path):
            raise ValueError("it is neither .safetensors nor a file that torchvision publishes; convert it")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelMissing(f"jobs.validation.weights {path} cannot be read: {error}") from error
    return dict(state.get("state_dict", state)) if isinstance(state, dict) else {}


def _is_published(path: Path) -> bool:
    """Whether torchvision publishes the file. The names of published files contain the beginning of their SHA-256.

    Other pickles are of unknown origin and are not read.
    """
    from torchvision.models import ResNet50_Weights

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest[:8] in {Path(one.url).stem.rpartition("-")[2] for one in ResNet50_Weights}


def _digest(network: Any) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(value.detach().contiguous().numpy()).tobytes())
    return whole.hexdigest()
