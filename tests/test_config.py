"""config.yaml: the shipped file is the defaults, every key is explained, and mistakes get a helpful sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from node.config import Profile, RenditionPolicy, Settings, load, parse, parse_sample
from storage.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config.yaml"


def test_the_shipped_file_is_the_defaults_and_two_peers() -> None:
    shipped = load(SHIPPED)
    assert shipped.model_copy(update={"peers": ()}) == Settings()
    modality, viewer = shipped.peers
    assert (modality.ae_title, modality.allow) == ("MODALITY", ("echo", "store"))
    assert (viewer.ae_title, viewer.allow) == ("VIEWER", ("echo", "find", "move", "get"))
    assert viewer.rendition is RenditionPolicy.RECONSTRUCTED
    assert viewer.reachable
    assert not modality.reachable


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        found.add(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys_of(field.annotation, f"{prefix}{name}.")
    return found


def written(raw: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in raw.items():
        found.add(prefix + name)
        if isinstance(value, dict):
            found |= written(value, f"{prefix}{name}.")
    return found


def test_every_key_is_shown_and_explained() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    assert written(yaml.safe_load(text)) == keys_of(Settings)
    lines = text.splitlines()
    explained = "\n".join(line for line in lines if line.lstrip().startswith("#"))
    for number, line in enumerate(lines):
        match = re.match(r"^ +([a-z_0-9]+):", line)
        if match and not line.rstrip().endswith(":") and "- " not in line:
            above = lines[number - 1].lstrip()
            assert above.startswith("#") or match[1] in explained or f"{match[1]}s" in explained, line


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"node": {"prot": 1}}, "node.prot: unknown key; did you mean port?"),
        ({"nod": {}}, "nod: unknown key; did you mean node?"),
        ({"reconstruct": {"sd_x2": {"weigths": "x"}}}, "did you mean weights?"),
        ({"peers": [{"ae_title": "A", "alow": []}]}, "peers.0.alow: unknown key; did you mean allow?"),
        ({"gate": {"balanced": {"fsim_mean": 0.9}}}, "gate.balanced.fsim_mean"),
        ({"gate": {"balanced": {"fsim_p5": 0.5}}}, "gate.balanced.fsim_p5"),
        ({"gate": {"strict": {"psnr_db": 28}}}, "gate.strict.psnr_db"),
        ({"gate": {"fsim_mean": 0.95}}, "gate.fsim_mean: unknown key"),
        ({"storage": {"min_free": "much"}}, "'much' is no size"),
        ({"node": {"ae_title": "A TITLE THAT IS TOO LONG"}}, "is no AE title"),
        ({"node": {"port": 70000}}, "node.port"),
        ({"peers": [{"ae_title": "A"}, {"ae_title": "A"}]}, "appears more than once"),
        ({"codec": {"ladder": [{"scale": 3, "coder": "jpegxl"}]}}, "codec.ladder.0.scale"),
        ({"codec": {"ladder": [{"scale": 2, "coder": "png16", "distance": 1}]}}, "lossless"),
        ({"reconstruct": {"upscaler": "magic"}}, "reconstruct.upscaler"),
        ({"audit": {"sample": "0"}}, "is no sample"),
        ({"audit": {"reserve": 5}}, "is no share"),
        ({"unknown_peers": {"allow": ["find"]}}, "unknown_peers.allow.0"),
        ([], "top level must be a mapping"),
    ],
)
def test_mistakes(raw: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(raw, "test.yaml")
    assert says in str(error.value)
    assert "test.yaml" in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("node: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(broken)
    broken.write_text("")
    assert load(broken) == Settings()


def test_samples_and_the_reserve() -> None:
    assert parse_sample("5%") == 0.05
    assert parse_sample(100) == 100
    assert Settings().audit.reserve_bound.startswith("028f5c28f5c28"), "a hundredth of all digests"
    assert parse({"audit": {"reserve": "0%"}}, "t").audit.reserve_bound == ""
    assert parse({"audit": {"reserve": "100%"}}, "t").audit.reserve_bound > "f" * 64


def test_sizes_and_ladders() -> None:
    assert parse({"storage": {"min_free": "1.5GB"}}, "t").storage.min_free == 1_500_000_000
    assert parse({"storage": {"min_free": 7}}, "t").storage.min_free == 7
    own = parse({"codec": {"ladder": [{"scale": 2, "coder": "jpegls"}]}}, "t").codec
    assert [str(rung) for rung in own.rungs] == ["x2 jpegls"]
    paper = parse({"codec": {"profile": "paper"}}, "t").codec
    assert paper.profile is Profile.PAPER
    assert [str(rung) for rung in paper.rungs] == ["x2 png16"]
    assert not paper.gated
    assert Settings().codec.gated
