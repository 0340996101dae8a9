"""Proves that config.yaml holds the defaults, explains every key, and that a mistake gets a helpful message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from node.config import Profile, RenditionPolicy, Settings, load, parse, parse_sample
from node.dimse.associations.peers import Peers
from storage.errors import ConfigError
from storage.records import Thresholds
from tests.support.paths import SHIPPED


@pytest.mark.parametrize(
    ("raw", "may"),
    [
        ({}, ("echo", "store")),
        ({"node": {"port": 1}}, ("echo", "store")),
        ({"peers": []}, ("echo",)),
        ({"peers": [{"ae_title": "A"}]}, ("echo",)),
        ({"unknown_peers": {}}, ("echo",)),
        ({"unknown_peers": {"allow": []}}, ()),
        ({"peers": [], "unknown_peers": {"allow": ["store"]}}, ("store",)),
    ],
)
def test_what_strangers_may(raw: dict[str, Any], may: tuple[str, ...]) -> None:
    """They store where a configuration says nothing of who calls, or where it says that they may."""
    assert parse(raw, "t").strangers_may == may
    assert Peers(parse(raw, "t")).may("STRANGER", "store") is ("store" in may)


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
        ({"gate": {"balanced": {"lines": [4.0, 2.0]}}}, "gate.balanced.lines"),
        ({"gate": {"balanced": {"speck": 3.0}}}, "gate.balanced.speck"),
        ({"gate": {"balanced": {"speck_most": 0.9}}}, "gate.balanced.speck_most"),
        ({"gate": {"strict": {"shift": 0}}}, "gate.strict.shift"),
        ({"gate": {"strict": {"fsim_mean": 0.95}}}, "gate.strict.fsim_mean: unknown key"),
        ({"storage": {"min_free": "much"}}, "'much' is no size"),
        ({"node": {"ae_title": "A TITLE THAT IS TOO LONG"}}, "is no AE title"),
        ({"node": {"port": 70000}}, "node.port"),
        ({"peers": [{"ae_title": "A"}, {"ae_title": "A"}]}, "appears more than once"),
        ({"codec": {"scales": [3]}}, "codec.scales.0"),
        ({"codec": {"scales": []}}, "codec.scales"),
        ({"codec": {"effort": 10}}, "codec.effort"),
        ({"reconstruct": {"texture": "smooth"}}, "reconstruct.texture"),
        ({"peers": [{"ae_title": "A", "texture": "none"}]}, "texture is for peers with rendition"),
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


def test_sizes_and_operating_points() -> None:
    assert parse({"storage": {"min_free": "1.5GB"}}, "t").storage.min_free == 1_500_000_000
    assert parse({"storage": {"min_free": 7}}, "t").storage.min_free == 7
    assert Settings().codec.fixed_point is None, "it is searched for"
    paper = parse({"codec": {"profile": "paper"}}, "t").codec
    assert paper.profile is Profile.PAPER
    assert str(paper.fixed_point) == "x2 png16"
    assert not paper.gated
    assert Settings().codec.gated


def test_limits_by_profile() -> None:
    assert Settings().thresholds == Thresholds()
    strict = parse({"codec": {"profile": "us-mqsa"}}, "t").thresholds
    assert strict.lines < Thresholds().lines
    assert strict.lost < Thresholds().lost
    assert strict.speck == Thresholds().speck
    own = parse({"gate": {"balanced": {"shift": 0.01}}}, "t").thresholds
    assert own == Thresholds(shift=0.01)


def test_a_peer_may_have_a_texture_of_its_own() -> None:
    viewer = {"ae_title": "V", "rendition": "reconstructed"}
    measuring = {**viewer, "ae_title": "M", "texture": "none"}
    peers = Peers(parse({"peers": [viewer, measuring]}, "t"))
    assert [peers.draws(title) for title in ("V", "M", "UNKNOWN")] == [True, False, True]
    drawn = {**viewer, "ae_title": "D", "texture": "drawn"}
    peers = Peers(parse({"peers": [viewer, drawn], "reconstruct": {"texture": "none"}}, "t"))
    assert [peers.draws(title) for title in ("V", "D")] == [False, True]
