"""Down the ladder (node/reconstruct/encoding.py): what is asked of the network, and what is kept of its answer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from node.config import ReconstructSettings
from node.reconstruct import guiding
from node.reconstruct.encoding import EncodeRequest, EncodeResult, encode_and_verify
from node.reconstruct.engine import reconstruct
from node.reconstruct.guide import Guide, decode_guide
from node.reconstruct.upscalers.bicubic import Bicubic
from node.reconstruct.upscalers.catalogue import Catalogue
from node.reconstruct.upscalers.mammo import Mammo
from node.reconstruct.upscalers.protocol import Upscaled, UpscaleTask
from storage.payload import decode_base, decode_rendition
from storage.pixels import pixel_digest
from storage.records import Rung
from tests.samples import breast, mammogram, write

CHEAP = Rung(4, "jpegxl", distance=6.0, sample_bits=12)
GOOD = Rung(2, "png16")


def encode(folder: Path, *ladder: Rung, detail: float = 0.0, gated: bool = True) -> EncodeResult:
    ds = mammogram(breast(420, 380))
    path = write(ds, folder / "one.dcm")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    request = EncodeRequest(path, digest, str(ds.SOPInstanceUID), ladder, 0.93, 0.90, 28.42, gated)
    settings = ReconstructSettings.model_validate({"upscaler": "mammo", "device": "cpu", "detail": detail})
    return encode_and_verify(request, Catalogue(settings))


def retrieved(result: EncodeResult) -> str:
    """Digest of the pixels that a retrieval would make of the payload's bytes."""
    base, made = decode_base(result.base), decode_rendition(result.rendition)
    guide = decode_guide(made.guide)
    return pixel_digest(reconstruct(base, Mammo(device="cpu"), seed=made.seed, steps=made.steps, guide=guide))


def test_the_network_is_not_asked_where_it_cannot_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Rung] = []
    upscale = Mammo.upscale

    def counted(self: Mammo, task: UpscaleTask) -> Upscaled:
        if task.levels is not None and task.levels.any():
            asked.append(task.rung)
        return upscale(self, task)

    monkeypatch.setattr(Mammo, "upscale", counted)
    result = encode(tmp_path, CHEAP, GOOD)
    assert asked == [GOOD]
    assert [outcome.rung for outcome in result.tried] == [str(CHEAP), str(GOOD)]
    first = result.tried[0].verdict
    assert first.fsim_mean < 0.91
    assert first.failures
    assert result.made is not None
    assert result.made.verdict.passed
    assert retrieved(result) == result.made.output_digest


def test_texture_may_help_anywhere_so_it_is_always_asked(tmp_path: Path) -> None:
    result = encode(tmp_path, CHEAP, detail=1.0)
    plain = encode(tmp_path, CHEAP)
    assert result.tried[0].verdict.fsim_mean > plain.tried[0].verdict.fsim_mean


def test_the_consistent_base_is_kept_where_the_gate_likes_it_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(reference: object, base: object, *_: object, **__: object) -> tuple[Guide, np.ndarray]:
        shape = reference.pixels.shape  # type: ignore[attr-defined]
        return Guide.nothing(*shape), np.zeros(shape, dtype=np.uint16)

    monkeypatch.setattr(guiding, "guided", spoilt)
    result = encode(tmp_path, GOOD)
    assert result.made is not None
    assert result.made.verdict.passed
    assert retrieved(result) == result.made.output_digest
    plain = reconstruct(decode_base(result.base), Bicubic(), seed=0, steps=0)
    assert pixel_digest(plain) == result.made.output_digest
    assert result.made.generative, "the header says so whatever the guide says"


def test_without_a_gate_the_first_rung_is_the_networks(tmp_path: Path) -> None:
    result = encode(tmp_path, CHEAP, GOOD, gated=False)
    assert result.made is not None
    assert len(result.tried) == 1
    assert not result.made.verdict.passed
    assert decode_guide(result.made.guide).levels.any()
