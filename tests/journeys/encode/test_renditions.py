"""Proves the other renditions: the paper's profile, the diffusion upscaler, the rendered cache, cancelled and
concurrent requests.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE

from node.app import Node
from node.archive.rendered_cache import RenderedCache
from node.config import Texture
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.formats.payload import decode_base, decode_rendition
from storage.records import InstanceState
from tests.conftest import Archive, settings_for
from tests.support import tiny_sd
from tests.support.samples import MAMMOGRAPHY, breast, mammogram
from tests.support.transfers import send

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


@pytest.mark.slow
def test_profile_paper_measures_and_does_not_gate(tmp_path: Path, receiver: Receiver) -> None:
    """The base is x2, 16-bit PNG, and nothing is refused. Even noise becomes MEASURED, never VERIFIED, and every
    recipient is told."""
    noise = np.random.default_rng(0).integers(0, 4096, (300, 280)).astype(np.uint16)
    ds = mammogram(noise)
    with Node(settings_for(tmp_path / "a", receiver.port, codec={"profile": "paper"})) as node:
        archive = Archive(node, receiver)
        send(archive, tmp_path, ds)
        held = archive.settled(ds.SOPInstanceUID)
        assert held.state is InstanceState.MEASURED
        assert held.rendition is not None
        assert str(held.rendition.point) == "x2 png16"
        assert held.rendition.verdict.fsim_mean < 0.93
        base = decode_base(node.store.read(held.rendition.base_digest))
        assert base.coded.startswith(b"\x89PNG")
        assert base.samples().shape == (150, 140)
        identifier = client.image_identifier(ds.StudyInstanceUID)
        client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
    copy = dcmread(receiver.received[held.rendition.derived_uid])
    assert copy[0x0099, 0x100D].value == "MEASURED"


@pytest.mark.slow
def test_a_peer_without_texture_gets_the_structure_alone(tmp_path: Path, receiver: Receiver) -> None:
    """One payload gives two objects. Each peer finds and gets the object of its texture, and can get the other by its
    own UID."""
    settings = settings_for(tmp_path / "a", receiver.port, codec={"scales": [1]})
    plain = settings.peers[1].model_copy(update={"ae_title": "MEASURER", "texture": Texture.NONE})
    settings = settings.model_copy(update={"peers": (*settings.peers, plain)})
    ds = mammogram()
    with Node(settings) as node:
        archive = Archive(node, receiver)
        send(archive, tmp_path, ds)
        made = archive.settled(ds.SOPInstanceUID).rendition
        assert made is not None

        def seen(peer: str, uid: str = "") -> list[str]:
            query = client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, uid)
            query.QueryRetrieveLevel, query.SOPInstanceUID = "IMAGE", uid
            return [str(one.SOPInstanceUID) for one in client.find(query, archive.address, calling=peer)]

        def moved(peer: str, *uids: str) -> set[str]:
            receiver.received.clear()
            query = client.image_identifier(ds.StudyInstanceUID)
            if uids:
                query = client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, uids[0])
                query.SOPInstanceUID = list(uids)
            assert client.move(query, archive.address, calling=peer, destination=peer).Status == 0x0000
            return set(receiver.received)

        assert seen("VIEWER") == [made.derived_uid]
        assert seen("MEASURER") == [made.structure_uid]
        for peer in ("VIEWER", "MEASURER"):
            for uid in (made.derived_uid, made.structure_uid):
                assert seen(peer, uid) == [uid]
                assert moved(peer, uid) == {uid}
        assert moved("VIEWER", str(ds.SOPInstanceUID)) == {made.derived_uid}
        assert moved("MEASURER", str(ds.SOPInstanceUID)) == {made.structure_uid}
        both = {made.derived_uid, made.structure_uid}
        assert moved("MEASURER", *both) == both
        assert moved("EXACTVIEW", *both) == {ds.SOPInstanceUID}
        assert moved("VIEWER") == {made.derived_uid}
        drawn = dcmread(receiver.received[made.derived_uid])
        assert moved("MEASURER") == {made.structure_uid}
        alone = dcmread(receiver.received[made.structure_uid])
        assert send(archive, tmp_path, alone) == [0x0000], "it is known when it comes back"
    assert pixel_digest(drawn.pixel_array) == made.output_digest
    assert pixel_digest(alone.pixel_array) == made.structure_digest != made.output_digest
    assert drawn[0x0008, 0x001C].value == "YES"
    assert (0x0008, 0x001C) not in alone
    purposes = [
        one.ContributingEquipmentSequence[-1].PurposeOfReferenceCodeSequence[0].CodeValue for one in (drawn, alone)
    ]
    assert purposes == ["109100", "109102"], "Synthesizing and Processing Equipment (PS3.16 CID 7005)"
    assert "noise is synthetic" in drawn.DerivationDescription
    assert "structure alone" in alone.DerivationDescription
    assert "noise is synthetic" in drawn.ImageComments
    assert "structure alone" in alone.ImageComments
    assert (drawn[0x0099, 0x100F].value, alone[0x0099, 0x100F].value) == ("DRAWN", "NONE")
    assert (drawn[0x0099, 0x1010].value, alone[0x0099, 0x1010].value) == (made.structure_uid, made.derived_uid)
    assert drawn.SeriesInstanceUID == alone.SeriesInstanceUID == ds.SeriesInstanceUID


@pytest.mark.slow
def test_sd_x2_through_the_whole_node(tmp_path: Path, receiver: Receiver) -> None:
    """The paper's pipeline with tiny random weights: the image is measured, sent as synthetic, and the same pixels are
    made again."""
    weights = tiny_sd.build(tmp_path / "weights")
    reconstruct = {
        "upscaler": "sd_x2",
        "device": "cpu",
        "cache": 0,
        "sd_x2": {"weights": str(weights), "steps": 2, "tile": 64, "overlap": 16},
    }
    settings = settings_for(tmp_path / "a", receiver.port, codec={"profile": "paper"}, reconstruct=reconstruct)
    ds = mammogram(breast(300, 270))
    with Node(settings) as node:
        archive = Archive(node, receiver)
        send(archive, tmp_path, ds)
        held = archive.settled(ds.SOPInstanceUID)
        assert held.state is InstanceState.MEASURED, held.reason
        assert held.rendition is not None
        identifier = client.image_identifier(ds.StudyInstanceUID)
        for _ in range(2):
            receiver.received.clear()
            final = client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
            assert final.Status == 0x0000
            path = receiver.received[held.rendition.derived_uid]
            assert pixel_digest(integer_pixels(path)) == held.rendition.output_digest
        made = decode_rendition(node.store.read(held.rendition.rendition_digest))
    copy = dcmread(path)
    assert copy[0x0008, 0x001C].value == "YES"
    assert copy.LossyImageCompressionMethod == "LDM_UPSCALE_1"
    assert copy[0x0099, 0x1002].value == "sd_x2"
    assert made.generative
    assert made.steps == 2


def test_rendered_cache(tmp_path: Path) -> None:
    """The least recently used entry is removed first, a reader can finish reading an entry, and leftovers are removed
    at start."""
    cache = RenderedCache(tmp_path, budget=250)
    for key in ("a", "b"):
        made = cache.new_file()
        made.write_bytes(key.encode() * 100)
        cache.keep(key, made).unlink()
    held = cache.link("a")  # used: b is now the oldest
    assert held is not None
    third = cache.new_file()
    third.write_bytes(b"c" * 100)
    cache.keep("c", third).unlink()
    assert cache.link("b") is None
    cache.link("a").unlink()  # type: ignore[union-attr]
    fourth = cache.new_file()
    fourth.write_bytes(b"d" * 240)
    reading = cache.keep("d", fourth)
    assert cache.link("a") is None
    assert held.read_bytes() == b"a" * 100
    unfinished = cache.new_file()
    again = RenderedCache(tmp_path, budget=250)
    assert not unfinished.exists()
    assert not reading.exists()
    assert again.link("d") is not None


@pytest.mark.slow
def test_second_retrieval_comes_from_the_cache(archive: Archive, tmp_path: Path) -> None:
    ds = mammogram()
    send(archive, tmp_path, ds)
    held = archive.settled(ds.SOPInstanceUID)
    assert held.rendition is not None
    identifier = client.image_identifier(ds.StudyInstanceUID)
    client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
    archive.node.pool.close()  # nothing can be made any more
    archive.receiver.received.clear()
    final = client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
    assert final.Status == 0x0000
    assert list(archive.receiver.received) == [held.rendition.derived_uid]


@pytest.mark.slow
def test_cancel_is_honoured_before_the_next_image(quiet_archive: Archive, tmp_path: Path) -> None:
    study = generate_uid()
    images = [mammogram(breast(200, 200, seed=n), StudyInstanceUID=study) for n in range(30)]
    assert set(send(quiet_archive, tmp_path, *images)) == {0x0000}
    entity = AE("EXACTVIEW")
    entity.add_requested_context(STUDY_ROOT_MOVE)
    assoc = entity.associate("127.0.0.1", quiet_archive.address.port)
    final = Dataset()
    pending = 0
    for status, _ in assoc.send_c_move(client.image_identifier(study), "EXACTVIEW", STUDY_ROOT_MOVE, msg_id=7):
        final = status
        if status.Status == 0xFF00:
            pending += 1
            if pending == 3:
                assoc.send_c_cancel(7, query_model=STUDY_ROOT_MOVE)
    assoc.release()
    assert final.Status == 0xFE00
    done = final.NumberOfCompletedSuboperations
    assert 3 <= done < 30
    assert final.NumberOfRemainingSuboperations == 30 - done
    assert len(quiet_archive.receiver.received) == done


@pytest.mark.slow
def test_twenty_senders_at_once(quiet_archive: Archive, tmp_path: Path) -> None:
    """20 associations with 10 images each, some of one study: none fails, and every image is stored once."""
    shared = generate_uid()
    batches = []
    for sender in range(20):
        study = shared if sender % 2 else generate_uid()
        batches.append([mammogram(breast(200, 200, seed=n), StudyInstanceUID=study) for n in range(10)])
    statuses: list[list[int]] = [[] for _ in batches]

    def work(number: int) -> None:
        folder = tmp_path / f"sender-{number}"
        folder.mkdir()
        statuses[number] = send(quiet_archive, folder, *batches[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [[0x0000] * 10] * 20
    assert quiet_archive.node.index.counts().backlog == 200
    query = client.image_identifier(shared)
    query.NumberOfStudyRelatedInstances = None
    (study_row,) = client.find(query, quiet_archive.address, calling="VIEWER")
    assert study_row.NumberOfStudyRelatedInstances == 100


@pytest.mark.slow
def test_the_same_image_from_many_senders_is_held_once(tmp_path: Path, receiver: Receiver) -> None:
    strangers = {"allow": ["echo", "store"]}
    with Node(
        settings_for(tmp_path / "archive", receiver.port, archivist={"enabled": False}, unknown_peers=strangers)
    ) as running:
        assert_held_once(Archive(running, receiver), tmp_path)


def assert_held_once(archive: Archive, tmp_path: Path) -> None:
    """Eight peers send one image at once to an archive whose archivist is off."""
    ds = mammogram(breast(300, 280))
    statuses: list[int] = []

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        statuses.extend(send(archive, folder, ds, calling=f"S{number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 8
    assert len(list(archive.node.store.digests())) == 1
    assert archive.node.index.counts().backlog == 1
    receiver = Receiver(tmp_path)
    identifier = client.image_identifier(ds.StudyInstanceUID)
    client.get(identifier, archive.address, calling="EXACTVIEW", sop_classes=[MAMMOGRAPHY], receiver=receiver)
    assert list(receiver.received) == [ds.SOPInstanceUID]
