"""Proves that everything that a peer sends gets a status, and is stored verbatim with a warning or leaves nothing."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pynetdicom.dimse_primitives import C_STORE

from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.dicomfile import file_meta, opened
from storage.dicom.writing import encode
from storage.records import InstanceState, ReasonCode
from tests.conftest import Archive, settings_for, size_of, spooled, wait_for
from tests.support.raw_sender import RawSender
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write


@pytest.fixture
def sender(quiet_archive: Archive) -> Iterator[RawSender]:
    sender = RawSender(quiet_archive)
    yield sender
    if sender.assoc.is_established:
        sender.assoc.release()


def nothing_left(archive: Archive) -> None:
    """Check that there is no object, no row and no spooled file."""
    node = archive.node
    assert list(node.store.digests()) == []
    assert sum(node.index.counts().by_state.values()) == 0
    wait_for(lambda: not spooled(node.store.spool), what="an empty spool")


def sample(**changes: Any) -> Dataset:
    return mammogram(breast(300, 280), **changes)


def test_not_dicom_at_all(quiet_archive: Archive, sender: RawSender) -> None:
    noise = random.Random(1).randbytes(100_000)
    for body in (noise, b"%PDF-1.7\n" + noise, b"\x00" * 1000, b"A" * 5000):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            status = sender.send(body, sop_instance=generate_uid(), syntax=syntax)
            assert status.Status & 0xF000 == 0xC000, hex(status.Status)
            assert status.ErrorComment
    nothing_left(quiet_archive)


@pytest.mark.slow
def test_truncated_before_the_pixels(quiet_archive: Archive, sender: RawSender) -> None:
    ds = sample()
    body = encode(ds, ExplicitVRLittleEndian)
    header = len(body) - len(ds.PixelData)
    for cut in range(20, header - 12, header // 25):
        status = sender.send(body[:cut], sop_instance=ds.SOPInstanceUID)
        if status.Status == 0xB007:  # cut between two elements: an image without its pixels
            held = quiet_archive.node.index.by_uid(ds.SOPInstanceUID)
            assert held is not None
            assert "no pixel data" in held.reason
            break
        assert status.Status in (0xC001, 0xC002), f"cut at {cut}: {status.Status:#06x}"
        nothing_left(quiet_archive)


def test_a_request_without_a_data_set(
    quiet_archive: Archive, sender: RawSender, caplog: pytest.LogCaptureFixture
) -> None:
    status = sender.send(None, sop_instance=generate_uid())
    assert status.Status == 0xC002
    assert status.ErrorComment == "the request has no data set"
    assert [one.levelname for one in caplog.records if one.levelno >= logging.WARNING] == ["WARNING"]
    assert "C002" in caplog.text
    nothing_left(quiet_archive)


@pytest.mark.slow
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_missing_uids(quiet_archive: Archive, sender: RawSender, keyword: str) -> None:
    ds = sample()
    uid = ds.SOPInstanceUID
    setattr(ds, keyword, "")
    status = sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=uid)
    assert status.Status == 0xC001
    assert keyword in status.ErrorComment
    delattr(ds, keyword)
    assert sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=uid).Status == 0xC001
    nothing_left(quiet_archive)


def test_wrong_sop_class_and_wrong_instance(quiet_archive: Archive, sender: RawSender) -> None:
    ds = sample()
    uid = ds.SOPInstanceUID
    assert sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=generate_uid()).Status == 0xA900
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    assert sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=uid).Status == 0xA900
    nothing_left(quiet_archive)


@pytest.mark.slow
@pytest.mark.parametrize("uid", ["../../../../tmp/owned", "/etc/passwd", "1.2.3/../../x", "1..2", "1.2.3.", ".1", "x"])
def test_uid_that_is_a_path_or_no_uid(quiet_archive: Archive, sender: RawSender, uid: str) -> None:
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        ds = sample()
        affected = str(ds.SOPInstanceUID)
        body = encode(ds, ExplicitVRLittleEndian)
        right = str(getattr(ds, keyword))
        hostile = body.replace(right.encode(), uid.encode().ljust(len(right), b"\0"))
        assert hostile != body
        status = sender.send(hostile, sop_instance=affected)
        assert status.Status == 0x0117, hex(status.Status)
    nothing_left(quiet_archive)


@pytest.mark.slow
@pytest.mark.parametrize("length", [65, 128])
def test_a_uid_that_is_too_long(quiet_archive: Archive, sender: RawSender, length: int) -> None:
    """The UID is refused like other invalid UIDs, and the association continues."""
    uid = "1." + "2" * (length - 2)
    for whole in (encode(sample(SOPInstanceUID=uid), ExplicitVRLittleEndian), b"no data set"):
        assert sender.send(whole, sop_instance=uid).Status == 0x0117
    ds = sample(SOPInstanceUID=uid[:64])
    assert sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=uid).Status == 0x0117
    nothing_left(quiet_archive)
    assert sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=uid[:64]).Status == 0x0000


def test_abort_in_the_middle(quiet_archive: Archive) -> None:
    """A peer ends inside a data set. The association ends, and its spooled file is removed."""
    sender = RawSender(quiet_archive)
    ds = mammogram(breast(1200, 1000))
    body = encode(ds, ExplicitVRLittleEndian)
    context = next(c for c in sender.assoc.accepted_contexts if c.transfer_syntax[0] == ExplicitVRLittleEndian)
    request: Any = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MAMMOGRAPHY, ds.SOPInstanceUID
    request.DataSet = BytesIO(body)
    from pynetdicom.dimse_messages import C_STORE_RQ

    message = C_STORE_RQ()
    message.primitive_to_message(request)
    pieces = list(message.encode_msg(context.context_id, 65536))
    for piece in pieces[: len(pieces) // 2]:
        sender.assoc.dul.send_pdu(piece)
    spool = quiet_archive.node.store.spool
    wait_for(lambda: any(size_of(path) > 100_000 for path in spooled(spool)), what="spooled bytes")
    sock = sender.assoc.dul.socket
    assert sock is not None
    sock.socket.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    nothing_left(quiet_archive)
    sender.assoc.abort()
    sock.socket.close()  # type: ignore[union-attr]


def kept_with_warning(archive: Archive, body: bytes, uid: str, status: Dataset, tmp_path: Path) -> None:
    """Check that the status is B007 with a comment, that the bytes are stored verbatim, and that the archivist will not
    encode them."""
    assert status.Status == 0xB007, hex(status.Status)
    assert status.ErrorComment
    held = archive.node.index.by_uid(uid)
    assert held is not None
    assert held.state is InstanceState.EXACT
    assert held.reason
    assert archive.node.store.read(held.original_digest).endswith(body)


def test_short_and_odd_pixels_are_kept(quiet_archive: Archive, sender: RawSender, tmp_path: Path) -> None:
    short = sample()
    short.PixelData = short.PixelData[:-1000]
    no_rows = sample(Rows=None)
    for ds in (short, no_rows):
        body = encode(ds, ExplicitVRLittleEndian)
        status = sender.send(body, sop_instance=ds.SOPInstanceUID)
        kept_with_warning(quiet_archive, body, ds.SOPInstanceUID, status, tmp_path)
    cut = sample()
    body = encode(cut, ExplicitVRLittleEndian)[:-5001]  # the element announces more than there is
    status = sender.send(body, sop_instance=cut.SOPInstanceUID)
    kept_with_warning(quiet_archive, body, cut.SOPInstanceUID, status, tmp_path)


def test_overlays_in_the_bits_of_native_pixels_are_accepted(archive: Archive, tmp_path: Path) -> None:
    """Overlay Bit Position (60xx,0102) other than 0 is retired, and valid in old images (PS3.5-2004 8.1.2)."""
    ds = sample()
    ds.PixelData = (breast(300, 280) | np.uint16(0x1000)).astype("<u2").tobytes()
    for element, value in ((0x0010, 300), (0x0011, 280), (0x0100, 16), (0x0102, 12)):
        ds.add_new(0x60000000 | element, "US", value)
    path, statuses = write(ds, tmp_path / "x.dcm"), []
    client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    held = archive.settled(ds.SOPInstanceUID)
    assert (statuses, held.state, held.reason) == ([0], InstanceState.EXACT, ReasonCode.STRAY_BITS.sentence)
    assert archive.node.store.read(held.original_digest).endswith(encode(ds, ExplicitVRLittleEndian))


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_undecodable_codestream_is_kept(quiet_archive: Archive, sender: RawSender, tmp_path: Path, syntax: str) -> None:
    ds = sample()
    if syntax == RLELossless:
        ds.file_meta = file_meta(MAMMOGRAPHY, ds.SOPInstanceUID, ExplicitVRLittleEndian)
        ds.compress(RLELossless, generate_instance_uid=False)
        frame = bytes(ds.PixelData)
    else:
        frame = encapsulate([bytes(imagecodecs.jpeg2k_encode(breast(300, 280), codecformat="j2k", reversible=True))])
        ds.PixelData = frame
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    good = encode(ds, ExplicitVRLittleEndian)
    assert sender.send(good, sop_instance=ds.SOPInstanceUID, syntax=syntax).Status == 0x0000
    ds.SOPInstanceUID = generate_uid()
    middle = len(frame) // 2
    ds.PixelData = (
        frame[:60] + bytes(np.random.default_rng(0).integers(0, 256, middle, np.uint8)) + frame[60 + middle :]
    )
    body = encode(ds, ExplicitVRLittleEndian)
    status = sender.send(body, sop_instance=ds.SOPInstanceUID, syntax=syntax)
    kept_with_warning(quiet_archive, body, ds.SOPInstanceUID, status, tmp_path)


def test_a_codestream_that_crashes_its_decoder(quiet_archive: Archive, sender: RawSender, tmp_path: Path) -> None:
    """GDCM aborts its process on a JPEG-LS codestream of another size. That process must not be the node's."""
    ds = sample()
    ds.PixelData = encapsulate([bytes(imagecodecs.jpegls_encode(breast(150, 280)))])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    body = encode(ds, ExplicitVRLittleEndian)
    status = sender.send(body, sop_instance=ds.SOPInstanceUID, syntax=JPEGLSLossless)
    kept_with_warning(quiet_archive, body, ds.SOPInstanceUID, status, tmp_path)
    receiver = Receiver(tmp_path)  # takes explicit little endian only: it would have to be decoded
    final = client.get(
        client.image_identifier(ds.StudyInstanceUID),
        quiet_archive.address,
        calling="EXACTVIEW",
        sop_classes=[MAMMOGRAPHY],
        receiver=receiver,
    )
    assert final.Status == 0xA702
    assert (final.NumberOfFailedSuboperations, receiver.received) == (1, {})
    moved = client.move(
        client.image_identifier(ds.StudyInstanceUID),
        quiet_archive.address,
        calling="EXACTVIEW",
        destination="EXACTVIEW",
    )
    assert moved.Status == 0x0000  # and as it is, it goes out
    with opened(quiet_archive.receiver.received[ds.SOPInstanceUID]) as file:
        assert bytes(file.data) == body


def test_full_disk_is_out_of_resources(
    quiet_archive: Archive, sender: RawSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet_archive.node.store, "_min_free", 1 << 60)
    ds = sample()
    assert sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=ds.SOPInstanceUID).Status == 0xA700
    nothing_left(quiet_archive)


def test_duplicates(quiet_archive: Archive, sender: RawSender) -> None:
    """The same content is answered with success and stored once, even in other bytes. Other content is quarantined."""
    ds = sample()
    uid = str(ds.SOPInstanceUID)
    explicit = encode(ds, ExplicitVRLittleEndian)
    assert sender.send(explicit, sop_instance=uid).Status == 0x0000
    first = list(quiet_archive.node.store.digests())
    assert sender.send(explicit, sop_instance=uid).Status == 0x0000
    implicit = encode(ds, ImplicitVRLittleEndian)
    assert sender.send(implicit, sop_instance=uid, syntax=ImplicitVRLittleEndian).Status == 0x0000
    assert list(quiet_archive.node.store.digests()) == first
    ds.PatientName = "Somebody^Else"
    status = sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=uid)
    assert status.Status == 0xC003
    assert status.ErrorComment
    assert [one.sop_instance_uid for one in quiet_archive.node.index.quarantine.all()] == [uid]
    held = quiet_archive.node.index.by_uid(uid)
    assert held is not None
    assert held.original_digest == first[0]


@pytest.mark.parametrize(("unknown_peers", "status"), [({"allow": ["echo", "store"]}, 0x0000), (None, 0x0124)])
def test_unknown_peers_store_where_they_may_and_nothing_else(
    tmp_path: Path, receiver: Receiver, unknown_peers: dict[str, list[str]] | None, status: int
) -> None:
    changes = {"unknown_peers": unknown_peers} if unknown_peers else {}
    with Node(settings_for(tmp_path / "archive", receiver.port, archivist={"enabled": False}, **changes)) as node:
        _strangers(Archive(node, receiver), status)


def _strangers(quiet_archive: Archive, expected: int) -> None:
    stranger = RawSender(quiet_archive, calling="STRANGER")
    ds = sample()
    assert stranger.send(encode(ds, ExplicitVRLittleEndian), sop_instance=ds.SOPInstanceUID).Status == expected
    stranger.assoc.release()
    identifier = client.image_identifier(ds.StudyInstanceUID)
    with pytest.raises(client.PeerRefused, match="0x0124"):
        client.find(identifier, quiet_archive.address, calling="STRANGER")
    moved = client.move(identifier, quiet_archive.address, calling="STRANGER", destination="EXACTVIEW")
    assert moved.Status == 0x0124
    got = client.get(
        identifier,
        quiet_archive.address,
        calling="STRANGER",
        sop_classes=[MAMMOGRAPHY],
        receiver=quiet_archive.receiver,
    )
    assert got.Status == 0x0124
    assert quiet_archive.receiver.received == {}
    viewer = RawSender(quiet_archive, calling="VIEWER")
    other = sample()
    assert viewer.send(encode(other, ExplicitVRLittleEndian), sop_instance=other.SOPInstanceUID).Status == 0x0124
    viewer.assoc.release()


@pytest.mark.slow
def test_random_mutations_never_hang_or_crash(quiet_archive: Archive, sender: RawSender, tmp_path: Path) -> None:
    ds = sample(PixelData=b"", Rows=0, Columns=0)
    body = bytearray(encode(ds, ExplicitVRLittleEndian))
    chance = random.Random(7)
    for _ in range(60):
        mutant = bytearray(body)
        for _ in range(chance.randint(1, 6)):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        status = sender.send(bytes(mutant), sop_instance=ds.SOPInstanceUID)
        known = {0x0000, 0xB007, 0xA900, 0x0117, 0xC001, 0xC002, 0xC003}
        assert status.Status in known, hex(status.Status)
    assert sender.assoc.is_established
    write(sample(), tmp_path / "alive.dcm")
