"""Trains on held originals for ``latent-pacs model fine-tune``, and lists the models for ``model list``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from node.cli.options import archive, open_index
from node.config import Settings, load
from node.training.image_files import Picture, read_picture, read_pictures
from node.upscalers.mammo import SHIPPED, WEIGHTS, Mammo, load_network
from storage.errors import ConfigError, ModelMissing, ObjectMissing, OriginalPurged
from storage.index.model_files import ModelRows

_FINE_RATE = 2e-4
"""Learning rate of a fine-tuning."""
_ENOUGH = 10**9
"""Pixels after which no further held original is read. They stay in memory, at 2 bytes each. Chosen, not measured."""


class Run(TypedDict):
    """Options of a training, as ``train`` and ``fine_tune_decoder`` take them."""

    minutes: float
    resume: bool
    device: str
    watch: Callable[[Any], None]


def held_pictures(config: Path, data: list[Path] | None) -> list[Picture]:
    """The mammograms to adapt to: those in ``data``, or held originals of reconstructable images.

    Held originals are read in the order of their SHA-256, so that the first ones are a random sample. Raises
    ConfigError if there is nothing to train on.
    """
    if data:
        return read_pictures(data)
    pictures: list[Picture] = []
    with archive(config) as services:
        for digest in services.index.reconstructable_originals():
            if sum(picture.pixels.size for picture in pictures) >= _ENOUGH:
                break
            with suppress(OriginalPurged, ObjectMissing), services.originals.borrowed(digest) as path:
                picture = read_picture(path)
                if picture is not None:
                    pictures.append(replace(picture, name=digest))
    if not pictures:
        raise ConfigError(f"the archive of {config} holds no originals to train on; name images with --data")
    return pictures


def fine_tune_mammo(
    pictures: list[Picture], settings: Settings, out: Path, *, seed: int, **run: Unpack[Run]
) -> dict[str, Any]:
    """Continue the training of the configured ``mammo`` at a low learning rate, into ``out``."""
    from node.training.trainer import Plan, train

    mammo = settings.reconstruct.mammo
    taken = {Path(folder).resolve() for folder in (SHIPPED, mammo.weights or SHIPPED, *mammo.older)}
    if out.resolve() in taken:
        raise ConfigError(f"{out} holds a model that renditions need; give another --out")
    network = load_network(Path(mammo.weights or SHIPPED))
    plan = Plan(steps=1, seed=seed, rate=_FINE_RATE)
    train(pictures, plan, out, start_from=network, **run)
    return {"use": f"reconstruct.mammo.weights: {out}", "digest": Mammo(out).weights_digest}


def fine_tune_sd_decoder(
    pictures: list[Picture], settings: Settings, out: Path, *, seed: int, **run: Unpack[Run]
) -> dict[str, Any]:
    from node.training.sd_decoder import DecoderPlan, fine_tune_decoder

    source = settings.reconstruct.sd_x2.weights
    plan = DecoderPlan(steps=1, seed=seed)
    result = fine_tune_decoder(pictures, source, out, plan, **run)
    return {
        "use": f"reconstruct.sd_x2.weights: {out}",
        "autoencoder_psnr_db_before": round(result.before_db, 3),
        "autoencoder_psnr_db_after": round(result.after_db, 3),
        "on_a_patient_kept_out": result.held_out,
    }


def known_models(config: Path) -> list[dict[str, Any]]:
    """The installed models of ``mammo``, and all models that renditions of this archive were made with."""
    settings = load(config) if config.is_file() else Settings()
    mammo = settings.reconstruct.mammo
    roles: dict[str, str] = {mammo.weights or str(SHIPPED): "for new renditions"}
    for folder in mammo.older:
        roles.setdefault(folder, "kept for older renditions")
    roles.setdefault(str(SHIPPED), "shipped")
    used = _used(config)
    rows = [_installed(Path(folder), role, used) for folder, role in roles.items()]
    installed = {row["digest"] for row in rows}
    for (upscaler, digest), (count, size) in used.items():
        if digest not in installed:
            role = "in use" if upscaler != "mammo" else "NOT INSTALLED: its images are served as originals"
            role = "kept in the object store" if size else role
            model = {"upscaler": upscaler, "digest": digest, "bytes": size}
            rows.append({**model, "renditions": count, "role": role, "folder": ""})
    return rows


def _installed(folder: Path, role: str, used: dict[tuple[str, str], tuple[int, int]]) -> dict[str, Any]:
    row = {"upscaler": "mammo", "digest": "", "bytes": 0, "renditions": 0, "role": role, "folder": str(folder)}
    try:
        digest = Mammo(folder).weights_digest
    except ModelMissing as error:
        return row | {"role": f"{role}; UNUSABLE: {error}"}
    size = (folder / WEIGHTS).stat().st_size
    return row | {"digest": digest, "bytes": size, "renditions": used.get(("mammo", digest), (0, 0))[0]}


def _used(config: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """By upscaler and digest: the number of renditions made with a model, and its bytes in the object store."""
    if not config.is_file():
        return {}
    try:
        with open_index(config) as index:
            used = {(use.upscaler, use.weights_digest): use.renditions for use in index.models()}
            rows = ModelRows(index.engine)
            return {model: (count, sum(file.bytes for file in rows.files(*model))) for model, count in used.items()}
    except ConfigError:  # there is no archive yet
        return {}
