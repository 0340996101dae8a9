"""Proves that folders and databases that cannot be those meant in config.yaml are left alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.app import backing_up
from node.app.backing_up import index_file, make_backup, make_replication, stores_of
from node.app.building import Services, open_archive, open_stores
from node.app.rebuilding import compact_journal, rebuild_index, take_in
from node.config import ScrubSettings, Settings, parse
from node.jobs.scrub_job import Extent, ScrubPlan
from storage.backup.create import BackupReport
from storage.errors import BackupRefused, ConfigError, ObjectMissing
from storage.index.job_runs import JobRows
from storage.objects.store import ObjectStore
from storage.records import OriginalForm, Tier
from tests.support.archive_parts import ArchiveParts, in_the_cold_store
from tests.support.job_runs import CountedRun, scrub_in

UID = "1.2.3.1"


def settings_of(root: Path, **storage: Any) -> Settings:
    return parse({"storage": {"root": str(root), "min_free": 0, **storage}}, "test")


# --- the cold store ---


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    """An archive whose only original is in the cold store."""
    return in_the_cold_store(tmp_path, UID)


def test_a_cold_store_whose_disk_is_not_mounted_is_refused(bench: ArchiveParts, tmp_path: Path) -> None:
    (tmp_path / "cold").rename(tmp_path / "elsewhere")
    (tmp_path / "cold").mkdir()
    with pytest.raises(ConfigError, match="should hold 1 original and has no objects; is it mounted"):
        open_stores(bench.settings, bench.index, bench.hot)
    assert list((tmp_path / "cold").iterdir()) == []


def test_a_cold_store_that_config_yaml_names_no_more(bench: ArchiveParts, tmp_path: Path) -> None:
    """A scrub and a backup end with one sentence. Formerly, both ended with a KeyError."""
    settings = settings_of(bench.root)
    stores = stores_of(settings, bench.index, bench.hot)
    with pytest.raises(ObjectMissing, match=r"originals\.path is not set; set it"):
        CountedRun().of(scrub_in(bench.index, stores, ScrubPlan(ScrubSettings(), Extent.FULL)).run)
    with pytest.raises(BackupRefused, match=r"originals\.path is not set; set it"):
        make_backup(settings, bench.index, stores, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_cold_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cold").write_bytes(b"")
    settings = parse({"storage": {"root": str(tmp_path / "a")}, "originals": {"path": str(tmp_path / "cold")}}, "test")
    empty = ArchiveParts(tmp_path / "a")
    with pytest.raises(ConfigError, match=f"originals.path {tmp_path / 'cold'} cannot be used: "):
        open_stores(settings, empty.index, empty.hot)


def test_originals_in_the_cold_store_are_taken_into_a_new_index(bench: ArchiveParts, tmp_path: Path) -> None:
    ((_, before),) = bench.index.originals.below("image", UID)
    bench.index.close()
    for file in tmp_path.glob("archive/index.sqlite*"):
        file.unlink()
    again = ArchiveParts(tmp_path / "archive", coder="none", path=str(tmp_path / "cold"))
    assert take_in(again.settings, again.hot, again.index) == 1
    ((_, held),) = again.index.originals.below("image", UID)
    assert (held.form, held.tier, held.object_digest) == (OriginalForm.VERBATIM, Tier.COLD, before.object_digest)
    again.check_promises()


# --- other databases ---


OTHER_DATABASE: dict[str, tuple[Callable[[Settings], object], str]] = {
    "back up": (index_file, "back it up with the tools of that database"),
    "rebuild": (
        lambda settings: rebuild_index(settings, lambda *_: None),
        "restore it with the tools of that database, or empty the key",
    ),
    "compact": (compact_journal, "so there is no change journal"),
}


@pytest.mark.parametrize("what", OTHER_DATABASE)
def test_an_index_in_another_database_is_left_to_its_own_tools(what: str, tmp_path: Path) -> None:
    act, says = OTHER_DATABASE[what]
    with pytest.raises(ConfigError, match=f"storage.database is not a SQLite file.*{says}"):
        act(settings_of(tmp_path / "archive", database="postgresql+psycopg://pacs@localhost/pacs"))
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("act", [lambda settings: rebuild_index(settings, lambda *_: None), compact_journal])
@pytest.mark.parametrize("there", [False, True], ids=["no folder", "empty folder"])
def test_no_archive_is_made_where_none_is(act: Callable[[Settings], object], there: bool, tmp_path: Path) -> None:
    """This happens after a spelling mistake in storage.root, even if the cold store of the real archive is found."""
    root, cold = tmp_path / "archive", tmp_path / "cold"
    if there:
        root.mkdir()
    else:
        ObjectStore(cold).put(b"original")
    settings = parse({"storage": {"root": str(root)}, "originals": {"path": str(cold)}}, "test")
    says = "has no objects and no journal" if there else "is not there"
    with pytest.raises(ConfigError, match=f"storage.root {root} {says}: is it right, and is its disk mounted"):
        act(settings)
    assert not list(tmp_path.glob("archive/*"))


# --- the job replicate ---


def replicate(archive: Services, to: Path | None) -> dict[str, Any]:
    return CountedRun().of(make_replication(archive, to).work)


def test_a_backup_folder_that_is_empty_again_is_not_filled_by_the_job(tmp_path: Path) -> None:
    ArchiveParts(tmp_path / "archive").index.close()
    settings, to = settings_of(tmp_path / "archive"), tmp_path / "backup"
    with open_archive(settings) as archive:
        JobRows(archive.index.engine).ensure(["replicate"])
        with pytest.raises(ConfigError, match=r"jobs\.replicate\.to names no folder"):
            replicate(archive, None)
        assert replicate(archive, to)["clean"]
        to.rename(tmp_path / "elsewhere")
        to.mkdir()
        with pytest.raises(BackupRefused, match=f"{to} held a backup and is empty now: is its disk mounted?"):
            replicate(archive, to)
        assert list(to.iterdir()) == []


def test_objects_that_are_missing_are_logged_by_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = ArchiveParts(tmp_path / "archive")
    parts.receive(UID)
    held = parts.index.by_uid(UID)
    assert held is not None
    parts.hot.delete(held.original_digest)
    parts.index.close()
    with open_archive(settings_of(tmp_path / "archive")) as archive, caplog.at_level(logging.ERROR):
        report = replicate(archive, tmp_path / "backup")
    assert not report["clean"]
    assert "missing or damaged in the archive: 1 object; run latent-pacs scrub --full" in caplog.text


def test_the_history_of_jobs_does_not_list_every_object_of_a_disk_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = BackupReport(missing=["ab" * 32] * 300, only_here=["cd" * 32] * 1000, finished=True)
    monkeypatch.setattr(backing_up, "make_backup", lambda *_: made)
    ArchiveParts(tmp_path / "archive").index.close()
    with open_archive(settings_of(tmp_path / "archive")) as archive:
        JobRows(archive.index.engine).ensure(["replicate"])
        report = replicate(archive, tmp_path / "backup")
    assert (len(report["missing"]), len(report["only_here"]), report["lost"]) == (200, 200, 1300)
