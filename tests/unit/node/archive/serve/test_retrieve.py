"""Proves what a peer is sent, and which files remain, if an image changes or cannot be made while it is retrieved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import update

from node.archive.query.find import find
from node.archive.query.identifier import Root
from node.archive.rendered_cache import RenderedCache
from node.archive.serve import retrieve as module
from node.archive.serve.retrieve import Choice, Retrieve, Sendable
from node.config import RenditionPolicy
from node.workers.requests import ReconstructRequest
from storage.errors import NothingToSend, ObjectMissing, OriginalPurged, WorkerDied
from storage.index.connection import writing
from storage.index.integrity import Integrity, NewDamage
from storage.index.tables import instance
from storage.records import InstanceState, ReasonCode, StoredInstance
from tests.support.annotations import presentation_state
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, hold_image, receive, small
from tests.support.samples import write

UID, DERIVED = "1.2.3.1", "2.25.7"


class Served:
    """An image with a reconstruction, and an annotation of it, ready to be retrieved."""

    def __init__(self, folder: Path) -> None:
        self.bench = ArchiveParts(folder / "archive", coder="none")
        bench, self.pool = self.bench, InlinePool()
        self.cache = bench.originals.cache = RenderedCache(bench.root / "rendered", 1 << 30)
        ds = small(UID)
        self.received = hold_image(bench, ds, DERIVED)
        self.state = presentation_state(str(ds.StudyInstanceUID), [UID])
        receive(bench, write(self.state, bench.root / "state.dcm").read_bytes(), self.state)
        parts = bench.index, self.pool, self.pool, bench.originals
        self.retrieve = Retrieve(*parts, threads=1)  # type: ignore[arg-type]

    def held(self, uid: str = UID) -> StoredInstance:
        found = self.bench.index.by_uid(uid)
        assert found is not None
        return found

    def choice(
        self,
        uid: str = UID,
        policy: RenditionPolicy = RenditionPolicy.RECONSTRUCTED,
        requested: frozenset[str] = frozenset(),
        *,
        rewrite: bool = False,
    ) -> Choice:
        (found,) = self.retrieve.choices([self.held(uid).key], policy, requested, rewrite=rewrite)
        return found

    def found(self, uid: str = UID, policy: RenditionPolicy = RenditionPolicy.RECONSTRUCTED, **keys: str) -> Dataset:
        """The one answer to a C-FIND at IMAGE level in the series of an image; annotations as copies."""
        held, identifier = self.held(uid), Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID, identifier.SeriesInstanceUID = held.study_instance_uid, held.series_instance_uid
        for keyword, value in {"SOPInstanceUID": "", **keys}.items():
            setattr(identifier, keyword, value)
        rights: Any = {"policy": policy, "retrieve_ae_title": "PACS", "copies": policy is not RenditionPolicy.AUTO}
        (one,) = find(self.bench.index, identifier, Root.STUDY, **rights)
        return one

    def set_state(self, state: InstanceState, original: str) -> None:
        """Set the state of the image, which keeps its rendition. ``original``: held, purged or lost."""
        if original == "purged":
            assert len(self.bench.retention.purge().purged) == 1
        code = ReasonCode.OTHER
        if original == "lost":
            held, integrity, code = self.held(), Integrity(self.bench.index.engine), ReasonCode.ORIGINAL_LOST
            self.bench.hot.delete(held.original_digest)
            integrity.note(NewDamage(held.original_digest, "original", "hot", held.key, "missing", "", "", "flagged"))
            damage = integrity.open_damage()[0]
            assert integrity.flag(damage, state, code, "scrub: original missing")
        with writing(self.bench.index.engine) as connection:
            changed = update(instance).where(instance.c.sop_instance_uid == UID)
            connection.execute(changed.values(state=state, reason_code=code))
        assert self.held().rendition is not None

    def sent(self, choice: Choice) -> str:
        """The SOP Instance UID in the file for a choice, which is then closed."""
        made = self.retrieve.make(choice)
        found = str(dcmread(made.path).SOPInstanceUID)
        assert found == made.sop_instance_uid
        made.close()
        assert not made.path.exists()
        return found

    def fail(self, error: Exception) -> None:
        """Let every reconstruction fail."""

        def first(request: object) -> None:
            if isinstance(request, ReconstructRequest):
                raise error

        self.pool.first = first

    def left(self) -> list[str]:
        """Files that readers or writers should have removed."""
        folders = self.bench.root / "lent", self.bench.root / "rendered" / "sending"
        making = (self.bench.root / "rendered").glob("*.making")
        return [path.name for folder in folders for path in folder.iterdir()] + [path.name for path in making]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.retrieve.close()


def delete(bench: ArchiveParts) -> None:
    bench.index.tombstones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
    bench.index.tombstones.delete_rows()


def test_the_reconstruction_is_sent_and_kept_in_the_cache(served: Served) -> None:
    assert served.sent(served.choice()) == DERIVED
    served.fail(WorkerDied("killed"))
    assert served.sent(served.choice()) == DERIVED
    assert served.left() == []


def test_the_original_is_sent_if_its_reconstruction_cannot_be_made(served: Served) -> None:
    served.fail(WorkerDied("killed"))
    assert served.sent(served.choice()) == UID
    assert served.left() == []
    assert not served.retrieve._making, "it left its lock behind"


SERVING = (InstanceState.VERIFIED, InstanceState.MEASURED)
PEERS = (RenditionPolicy.RECONSTRUCTED, RenditionPolicy.AUTO, RenditionPolicy.ORIGINAL)


@pytest.mark.parametrize("original", ["held", "purged", "lost"])
@pytest.mark.parametrize("state", InstanceState)
def test_a_peer_retrieves_under_the_uid_that_it_finds(served: Served, state: InstanceState, original: str) -> None:
    served.set_state(state, original)
    for policy in PEERS:
        uid = str(served.found(policy=policy).SOPInstanceUID)
        assert uid == served.choice(policy=policy).sop_instance_uid, policy
        assert uid == served.choice(uid, policy, frozenset([uid])).sop_instance_uid, policy
        derived = policy is PEERS[0] or (policy is PEERS[1] and original != "held")
        assert uid == (DERIVED if derived and state in SERVING else UID), policy
        if original == "held" or uid == DERIVED:
            assert served.found(policy=policy).InstanceAvailability == "ONLINE", policy
            assert served.sent(served.choice(policy=policy)) == uid, policy
        else:
            assert served.found(policy=policy).InstanceAvailability == "UNAVAILABLE", policy


def test_an_image_that_is_encoded_again_is_served_as_its_original(served: Served) -> None:
    """A marked region that the rendition lacks must be exact for every peer from then on."""
    Integrity(served.bench.index.engine).requeue(served.held().key, ReasonCode.OTHER, "a region was marked")
    assert served.sent(served.choice()) == UID == served.found().SOPInstanceUID
    assert served.choice(str(served.state.SOPInstanceUID), rewrite=True).copy is None, "it would name another object"
    # who found the derived object before still gets it by its UID
    assert served.found(SOPInstanceUID=DERIVED).SOPInstanceUID == DERIVED
    assert served.sent(served.choice(DERIVED, requested=frozenset([DERIVED]))) == DERIVED


def test_an_annotation_of_a_reconstruction_names_the_original_for_a_peer_that_gets_it(served: Served) -> None:
    state = presentation_state(served.held().study_instance_uid, [DERIVED])
    receive(served.bench, write(state, served.bench.root / "state.dcm").read_bytes(), state)
    uid = str(state.SOPInstanceUID)
    choice = served.choice(uid, RenditionPolicy.ORIGINAL, rewrite=True)
    assert choice.copy is not None
    assert served.found(uid, RenditionPolicy.ORIGINAL).SOPInstanceUID == choice.copy.uid
    made = served.retrieve.make(choice)
    (series,) = dcmread(made.path).ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedImageSequence] == [UID]
    made.close()
    assert served.choice(uid, rewrite=True).copy is None, "the peer gets the reconstruction that it names"
    assert served.found(uid).SOPInstanceUID == uid


def test_a_withdrawn_reconstruction_leads_to_the_original(served: Served) -> None:
    Integrity(served.bench.index.engine).withdraw(DERIVED, "an audit failed it")
    for policy in PEERS:
        assert served.found(policy=policy).SOPInstanceUID == UID
        assert served.sent(served.choice(policy=policy)) == UID
    assert served.found(SOPInstanceUID=DERIVED).SOPInstanceUID == UID
    assert served.sent(served.choice(DERIVED, requested=frozenset([DERIVED]))) == UID


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["purged", "missing"])
def test_nothing_is_sent_if_neither_can_be_made(served: Served, harm: str) -> None:
    choice = served.choice()
    if harm == "purged":
        assert len(served.bench.retention.purge().purged) == 1
    else:
        served.bench.hot.delete(served.held().original_digest)
    served.fail(WorkerDied("killed"))
    with pytest.raises(NothingToSend, match="the rendition cannot be sent: killed; nor can the original: "):
        served.retrieve.make(choice)
    assert served.left() == []


def test_the_reconstruction_is_sent_whose_base_a_killed_scrub_had_moved_aside(served: Served) -> None:
    """The original is purged. Formerly, nothing could be sent until a scrub came to the base."""
    choice = served.choice()
    assert choice.rendition is not None
    assert len(served.bench.retention.purge().purged) == 1
    base = choice.rendition.base_digest
    aside = served.bench.root / "damaged" / f"{base}.1"
    aside.parent.mkdir()
    served.bench.hot.path(base).rename(aside)
    assert served.sent(choice) == DERIVED
    assert served.bench.hot.has(base)


def test_the_reconstruction_is_sent_if_the_original_is_purged_after_it_was_chosen(served: Served) -> None:
    choice = served.choice(policy=RenditionPolicy.AUTO)
    assert served.sent(choice) == choice.sop_instance_uid == UID
    assert len(served.bench.retention.purge().purged) == 1
    assert served.sent(choice) == DERIVED
    assert served.left() == []


@pytest.mark.parametrize(
    ("policy", "requested"), [(RenditionPolicy.ORIGINAL, frozenset()), (RenditionPolicy.AUTO, frozenset([UID]))]
)
def test_an_original_that_was_asked_for_is_not_replaced(
    served: Served, policy: RenditionPolicy, requested: frozenset[str]
) -> None:
    choice = served.choice(UID, policy, requested)
    assert len(served.bench.retention.purge().purged) == 1
    with pytest.raises(OriginalPurged):
        served.retrieve.make(choice)
    assert served.left() == []


def test_an_image_that_is_deleted_while_it_is_made_does_not_stay_in_the_cache(served: Served) -> None:
    """A retrieval that began before may end; nobody gets the image afterwards."""
    choice = served.choice()

    def first(request: object) -> None:
        delete(served.bench)
        served.pool.first = lambda request: None

    served.pool.first = first
    assert served.sent(choice) == DERIVED
    assert list((served.bench.root / "rendered").glob("*.dcm")) == []
    served.bench.index.garbage.collect(served.bench.stores)
    with pytest.raises(NothingToSend):
        served.retrieve.make(choice)


def test_a_copy_of_an_annotation_has_its_own_uid_also_in_the_list_of_failures(served: Served) -> None:
    choice = served.choice(str(served.state.SOPInstanceUID), rewrite=True)
    assert choice.copy is not None
    assert choice.sop_instance_uid == choice.copy.uid
    made = served.retrieve.make(choice)
    copy = dcmread(made.path)
    (series,) = copy.ReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedImageSequence] == [DERIVED]
    assert copy.SOPInstanceUID == choice.copy.uid
    made.close()
    assert served.left() == []


def test_the_original_is_sent_if_the_copy_of_an_annotation_cannot_be_written(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = str(served.state.SOPInstanceUID)
    choice = served.choice(uid, rewrite=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_copy", full)
    assert served.sent(choice) == uid
    assert served.left() == []


def test_files_that_were_prepared_for_a_retrieval_that_ends_early_are_removed(served: Served) -> None:
    choices = [served.choice()] * 3
    prepared = served.retrieve.prepare(choices)
    _, first = next(prepared)
    first.result().close()
    prepared.close()
    served.retrieve.close()
    assert served.left() == []


def test_a_lost_original_is_an_error_of_its_own_future(served: Served) -> None:
    (choice,) = served.retrieve.choices([served.held().key], RenditionPolicy.ORIGINAL)
    served.bench.hot.delete(served.held().original_digest)
    ((_, future),) = served.retrieve.prepare([choice])
    with pytest.raises(ObjectMissing):
        future.result()


def test_a_file_that_cannot_be_transcoded_is_kept_for_another_try(served: Served) -> None:
    made: Sendable = served.retrieve.make(served.choice())

    def first(request: object) -> None:
        raise WorkerDied("killed")

    served.pool.first = first
    with pytest.raises(WorkerDied):
        served.retrieve.as_syntax(made, "1.2.840.10008.1.2.4.80")  # type: ignore[arg-type]
    assert made.path.exists()
    made.close()
    assert served.left() == []
