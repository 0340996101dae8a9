"""Proves that config.yaml holds the defaults, explains every key, and that a mistake gets a helpful message."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from node.config import (
    DEFAULT_FILE,
    Profile,
    RenditionPolicy,
    Settings,
    When,
    add_peer,
    as_data,
    as_yaml,
    load,
    parse,
    parse_sample,
)
from storage.errors import ConfigError
from storage.records import Thresholds
from tests.support.paths import ROOT, SHIPPED


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
def test_what_unknown_peers_may_do(raw: dict[str, Any], may: tuple[str, ...]) -> None:
    """Unknown peers may store if the configuration has neither peers nor unknown_peers, or if unknown_peers allows
    it."""
    assert parse(raw, "t").allowed_to_unknown_peers == may
    assert parse(raw, "t").caller("STRANGER").allow == may


def test_the_shipped_file_is_the_defaults_and_two_peers() -> None:
    shipped = parse(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")), "config.yaml")
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
        ({"storage": {"min_free": "much"}}, "'much' is not a size"),
        ({"node": {"ae_title": "A TITLE THAT IS TOO LONG"}}, "is not an AE title"),
        ({"node": {"port": 70000}}, "node.port"),
        ({"peers": [{"ae_title": "A"}, {"ae_title": "A"}]}, "appears more than once"),
        ({"codec": {"scales": [3]}}, "codec.scales.0"),
        ({"codec": {"scales": []}}, "codec.scales"),
        ({"codec": {"effort": 10}}, "codec.effort"),
        ({"reconstruct": {"texture": "smooth"}}, "reconstruct.texture"),
        ({"peers": [{"ae_title": "A", "texture": "none"}]}, "texture is for peers with rendition"),
        ({"reconstruct": {"upscaler": "magic"}}, "reconstruct.upscaler"),
        ({"audit": {"sample": "0"}}, "is not a sample"),
        ({"audit": {"reserve": 5}}, "is not a share"),
        ({"unknown_peers": {"allow": ["find"]}}, "unknown_peers.allow.0"),
        ({"originals": {"path": False}}, "originals.path: true and false are not valid here"),
        ({"originals": {"path": ["/cold"]}}, "originals.path"),
        ({"jobs": {"replicate": {"to": {"folder": "/backup"}}}}, "jobs.replicate.to"),
        ({"limits": {"decoder_memory": True}}, "limits.decoder_memory: true and false are not valid here"),
        ({"node": {"port": True}}, "node.port: true and false are not valid here"),
        ({"storage": {"root": ""}}, "storage.root: it is empty"),
        ({"jobs": {"poll": float("inf")}}, "jobs.poll: it is larger than 4000000000"),
        ({"node": {"network_timeout": 10**12}}, "node.network_timeout: it is larger than 4000000000"),
        ({"node": {"max_pdu": 2**32}}, "node.max_pdu"),
        ({"node": {"max_associations": 251}}, "node.max_associations: Input should be less than or equal to 250"),
        ({"limits": {"pixels": 2**63}}, "limits.pixels: it is larger than"),
        ({"limits": {"inflated": 400 * "9" + "B"}}, "is not a size"),
        ({"limits": {"idle": 400 * "9" + "d"}}, "is not a duration"),
        ({"originals": {"retain_for": "1001y"}}, "more than 1000 years; write forever"),
        ({"jobs": {"scrub": {"when": "every 1001d"}}}, "an interval is from 1m to 1000d"),
        ({"jobs": {"scrub": {"when": "every 59s"}}}, "an interval is from 1m to 1000d"),
        ({"jobs": {"scrub": {"when": "daily 24:00"}}}, "is not a schedule"),
        ({"jobs": {"scrub": {"when": "mon,thr 02:30"}}}, "is not a schedule"),
        ({"node": {"timezone": "Europe/Brelin"}}, "is not a time zone"),
        ({"storage": {"root": "/data"}, "originals": {"path": "/data/"}}, "originals.path is storage.root"),
        ({"eligibility": {"classes": [{"sop_class": "1.2.04"}]}}, "is not a UID"),
        ({"eligibility": {"classes": [{"sop_class": "1." + 63 * "2"}]}}, "is not a UID"),
        (
            {"peers": [{"ae_title": "A", "rendition": "auto", "references": "rewrite"}]},
            "references: rewrite is not for",
        ),
        ({"reconstruct": {"sd_x2": {"tile": 64, "overlap": 33}}}, "overlap 33 is more than half a tile of 64"),
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
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("# a\n# Gerät\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not UTF-8: line 2"):
        load(latin)
    broken = tmp_path / "broken.yaml"
    broken.write_text("node: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(broken)
    broken.write_text("node:\n  port: 1\n  ae_title: A\n  port: 2\n")
    with pytest.raises(
        ConfigError, match=r"line 4, column 3: the key port is here a second time; the first is in line 2"
    ):
        load(broken)
    broken.write_text("storage: {database: 'postgresql+psycopg://u:Secret@h/d', database: x}")
    with pytest.raises(ConfigError, match="the key database") as caught:
        load(broken)
    assert "Secret" not in str(caught.value)
    broken.write_text("base: &base {port: 1}\nnode: &node {<<: *base, port: 2}\nmore: {<<: *node}\n")
    with pytest.raises(ConfigError, match=r"more: "):  # an unknown key, but no repeated one
        load(broken)
    broken.write_text("")
    assert load(broken) == parse({"storage": {"root": str(tmp_path / "latent-pacs-data")}}, "t")


def test_samples_and_the_reserve() -> None:
    assert parse_sample("5%") == 0.05
    assert parse_sample(100) == 100
    assert Settings().audit.reserve_bound.startswith("028f5c28f5c28"), "a hundredth of all digests"
    assert parse({"audit": {"reserve": "0%"}}, "t").audit.reserve_bound == ""
    assert parse({"audit": {"reserve": "100%"}}, "t").audit.reserve_bound > "f" * 64


def test_values_at_a_limit_are_accepted() -> None:
    settings = parse(
        {
            "node": {"ae_title": "SIXTEEN LETTERS."},
            "peers": [{"ae_title": "A", "rendition": "original", "references": "rewrite"}],
            "eligibility": {"classes": [{"sop_class": "1." + 62 * "2"}]},
            "jobs": {"scrub": {"when": "every 1m"}},
            "originals": {"retain_for": "1000y"},
            "reconstruct": {"sd_x2": {"tile": 64, "overlap": 32}},
            "audit": {"sample": "1"},
        },
        "t",
    )
    assert settings.jobs.scrub.schedule == When(every=60)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3", 3), ("3b", 3), ("3KB", 3000), ("3 MB", 3_000_000), ("0.5GB", 500_000_000), ("3TB", 3 * 10**12)],
)
def test_units_of_sizes(text: str, size: int) -> None:
    assert parse({"storage": {"min_free": text}}, "t").storage.min_free == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("2m", 120), ("1.5h", 5400), ("2d", 172800), (2.5, 2.5), (" 2 m ", 120)]
)
def test_units_of_durations(text: object, seconds: float) -> None:
    assert parse({"limits": {"idle": text}}, "t").limits.idle == seconds


@pytest.mark.parametrize(
    ("text", "days"), [("48h", 2), ("2d", 2), ("2w", 14), ("2y", 730), ("FOREVER", None), (None, None)]
)
def test_units_of_retention(text: object, days: int | None) -> None:
    found = parse({"originals": {"retain_for": text}}, "t").originals.retain_for
    assert found == (None if days is None else timedelta(days=days))


def test_sizes_durations_and_operating_points() -> None:
    assert parse({"storage": {"min_free": "1000000000000000B"}}, "t").storage.min_free == 10**15
    assert parse({"commitment": {"pin_for": "36500d"}}, "t").commitment.pin_seconds == 36500 * 86400
    assert parse({"storage": {"min_free": "1.5GB"}}, "t").storage.min_free == 1_500_000_000
    assert parse({"storage": {"min_free": 7}}, "t").storage.min_free == 7
    assert Settings().codec.fixed_point is None, "the encoder searches for one"
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
    settings = parse({"peers": [viewer, measuring]}, "t")
    assert [settings.draws(settings.caller(title)) for title in ("V", "M", "UNKNOWN")] == [True, False, True]
    drawn = {**viewer, "ae_title": "D", "texture": "drawn"}
    settings = parse({"peers": [viewer, drawn], "reconstruct": {"texture": "none"}}, "t")
    assert [settings.draws(settings.caller(title)) for title in ("V", "D")] == [False, True]


def test_the_wheel_carries_the_shipped_file() -> None:
    assert DEFAULT_FILE.read_bytes() == SHIPPED.read_bytes(), "config.yaml is a copy of node/config/default.yaml"
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert str(DEFAULT_FILE.relative_to(ROOT / "node")) in manifest["tool"]["setuptools"]["package-data"]["node"]


def variables_of(raw: dict[str, Any], prefix: str = "LATENT_PACS_") -> dict[str, str]:
    """An environment variable for every key of the configuration."""
    found: dict[str, str] = {}
    for name, value in raw.items():
        variable = f"{prefix}_{name.upper()}"
        if isinstance(value, dict):
            found |= variables_of(value, f"{variable}_")
        else:
            found[variable] = json.dumps(value) if isinstance(value, list) else str(value)
    return found


def test_an_environment_variable_replaces_each_key(tmp_path: Path) -> None:
    """Environment variables for all keys of the shipped file give the same settings as the file."""
    empty = tmp_path / "config.yaml"
    empty.write_text("node: {port: 1}")
    variables = variables_of(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")))
    assert len(variables) > 100
    shipped = tmp_path / "shipped.yaml"
    shipped.write_bytes(SHIPPED.read_bytes())
    assert load(empty, variables) == load(shipped, {})


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("LATENT_PACS__NODE__PROT", "1", "did you mean LATENT_PACS__NODE__PORT?"),
        ("LATENT_PACS__NOD__PORT", "1", "did you mean LATENT_PACS__NODE?"),
        ("LATENT_PACS__NODE__PORT__X", "1", "no key node.port.x"),
        ("LATENT_PACS__NODE__PORT", "no", "node.port (from LATENT_PACS__NODE__PORT)"),
        ("LATENT_PACS__CODEC__SCALES", "[1", "not valid YAML"),
        ("LATENT_PACS__UNKNOWN_PEERS", "{allow: [echo], allow: [store]}", "the key allow is here a second time"),
    ],
)
def test_mistakes_in_variables(tmp_path: Path, variable: str, value: str, says: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    with pytest.raises(ConfigError) as error:
        load(file, {variable: value})
    assert says in str(error.value)
    assert variable in str(error.value)


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    (tmp_path / "backbone.pth").write_bytes(b"")
    raw = {
        "tls": {"certificate": "tls/node.pem", "key": "/etc/key.pem"},
        "storage": {"database": "sqlite:///index.sqlite"},
        "originals": {"path": "cold"},
        "gate": {"patches": {"regions": "boxes.csv"}},
        "reconstruct": {"mammo": {"older": ["old"]}},
        "jobs": {"replicate": {"to": "file:///mnt/backup"}, "validation": {"weights": "backbone.pth"}},
    }
    file.write_text(yaml.safe_dump({**raw, "tls": {**raw["tls"], "clients": "optional"}}))
    found = load(file, {})
    assert found.storage.root == tmp_path / "latent-pacs-data"
    assert (found.tls.certificate, found.tls.key) == (str(tmp_path / "tls/node.pem"), "/etc/key.pem")
    assert found.storage.database == f"sqlite:///{tmp_path}/index.sqlite"
    assert found.originals.path == tmp_path / "cold"
    assert found.gate.patches.file == tmp_path / "boxes.csv"
    assert found.reconstruct.mammo.older == (str(tmp_path / "old"),)
    assert found.reconstruct.mammo.weights == ""
    assert found.reconstruct.sd_x2.weights == "stabilityai/sd-x2-latent-upscaler", "no such folder, so it is a name"
    assert found.jobs.replicate.to == Path("/mnt/backup")
    assert found.jobs.validation.weights == str(tmp_path / "backbone.pth")


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "mongodb://user:secret@host/name", "mysql+pymysql://user:secret@host/name", "sqlite://"),
        *("sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:////folder/index.sqlite"),
    ],
)
def test_other_databases_are_refused(url: str) -> None:
    """An index in memory would be lost at the end, and one under another SQLite URL would have no journal."""
    with pytest.raises(ConfigError, match="neither a SQLite file nor a PostgreSQL database") as error:
        parse({"storage": {"database": url}}, "t").storage.database_url  # noqa: B018
    assert "secret" not in str(error.value)


def test_settings_as_text_are_the_same_settings() -> None:
    raw = {"originals": {"retain_for": "36h"}, "commitment": {"pin_for": "forever"}, "peers": [{"ae_title": "A"}]}
    settings = parse(raw, "t")
    assert parse(yaml.safe_load(as_yaml(settings)), "t") == settings
    secret = parse({"storage": {"database": "postgresql://me:swordfish@host/db"}}, "t")
    assert as_data(secret)["storage"]["database"] == "postgresql://me:***@host/db"
    secret = parse({"storage": {"database": "postgresql://host/db?user=me&password=a%40b&sslmode=require"}}, "test")
    shown = "postgresql://host/db?user=me&password=***&sslmode=require"
    assert as_data(secret)["storage"]["database"] == shown


ENTRY = {"ae_title": "NEW", "host": "h", "port": 104, "allow": ["echo", "find"]}


@pytest.mark.parametrize(
    "text",
    [
        SHIPPED.read_text(encoding="utf-8"),
        "",
        "peers: []  # none yet\nnode: {port: 1}\n",
        "node: {port: 1}\npeers:\n- ae_title: A\n  allow: [echo]\n# the end\n\nlog: {format: json}\n",
        "peers:\n    # first\n    - {ae_title: A}\n",
    ],
)
def test_a_peer_is_added_and_comments_stay(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    before = load(file, {}).peers
    added = add_peer(file, ENTRY)
    after = load(file, {}).peers
    assert after == (*before, added)
    assert (added.ae_title, added.allow) == ("NEW", ("echo", "find"))
    kept = [line for line in text.splitlines() if line not in ("", "peers: []  # none yet")]
    assert [line for line in file.read_text(encoding="utf-8").splitlines() if line in kept] == kept
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "entry", "says"),
    [
        ("peers: [{ae_title: A}]\n", ENTRY, "in one line"),
        ("peers:\n  - ae_title: NEW\n", ENTRY, "appears more than once"),
        ("", {**ENTRY, "port": 70000}, "peers.0.port"),
        ("peers: &x\n  - ae_title: A\n", ENTRY, "by hand"),
    ],
)
def test_a_peer_that_cannot_be_added_changes_nothing(
    tmp_path: Path, text: str, entry: dict[str, Any], says: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        add_peer(file, entry)
    assert says in str(error.value)
    assert str(file) in str(error.value)
    assert file.read_text(encoding="utf-8") == text
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]


def test_former_names_of_keys_are_read_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    former = {
        "node": {"drain": 7},
        "archivist": {"at_once": 1},
        "originals": {"keep": "3d"},
        "jobs": {"audit": {"enabled": False}, "lease": 5},
    }
    settings = parse(former, "old.yaml")
    assert settings.node.shutdown_timeout == 7
    assert settings.archivist.concurrency == 1
    assert settings.originals.retain_for == parse({"originals": {"retain_for": "3d"}}, "x").originals.retain_for
    assert (settings.audit.enabled, settings.jobs.lease) == (False, 5)
    assert "old.yaml: node.drain is now called node.shutdown_timeout; rename it" in caplog.text
    both = parse({"node": {"drain": 7, "shutdown_timeout": 9}}, "x")
    assert both.node.shutdown_timeout == 9
