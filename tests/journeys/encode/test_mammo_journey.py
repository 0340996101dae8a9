"""Proves that ``mammo`` works through the whole node: store, measure, retrieve, and a model that was removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from node.app import Node
from node.codec.noise import decode_noise
from node.dimse import client
from node.dimse.client import Receiver
from node.upscalers.mammo import SHIPPED, Mammo
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.formats.payload import decode_rendition
from storage.index.model_files import ModelRows
from storage.records import InstanceState
from tests.conftest import Archive, settings_for
from tests.support.samples import breast, mammogram, write


@pytest.mark.slow
def test_default_model_there_and_back_and_gone(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The image is measured with the shipped weights, and sent with the measured pixels, named as synthetic. When the
    model is no longer installed, it is read from the object store. Without that too, the log names its digest, and the
    original is sent instead."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")  # a model of its own, as a fine-tuned one would be
    digest = Mammo(folder).weights_digest
    reconstruct = {"upscaler": "mammo", "cache": 0, "device": "cpu", "mammo": {"weights": str(folder)}}
    ds = mammogram(breast(420, 380))
    identifier = client.image_identifier(ds.StudyInstanceUID)
    settings = settings_for(
        tmp_path / "a",
        receiver.port,
        reconstruct=reconstruct,
        codec={"profile": "paper"},  # the configured upscaler, whatever another would take
    )
    with Node(settings) as node:
        archive = Archive(node, receiver)
        file = write(ds, tmp_path / "one.dcm")
        client.store([file], archive.address, calling="MODALITY", each=lambda *_: None)
        held = archive.settled(ds.SOPInstanceUID)
        assert held.state is InstanceState.MEASURED, held.reason
        assert held.rendition is not None
        assert held.rendition.seconds > sum(trial.seconds for trial in held.rendition.tried)  # reading and search, too
        made = decode_rendition(node.store.read(held.rendition.rendition_digest))
        assert (made.upscaler, made.steps, made.weights_digest) == ("mammo", 0, digest)
        noise = decode_noise(made.noise)
        assert (noise.rows, noise.columns) == (420, 380)
        assert client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER").Status == 0x0000
        path = receiver.received[held.rendition.derived_uid]
        assert pixel_digest(integer_pixels(path)) == made.output_digest
        copy = dcmread(path)
        assert copy[0x0008, 0x001C].value == "YES"
        assert copy.LossyImageCompressionMethod == "LPACS_MAMMO"
        assert copy[0x0099, 0x1002].value == "mammo"

    config.write_text(config.read_text() + "\n")
    receiver.received.clear()
    with Node(settings) as node:  # the archive kept the model's files
        client.move(identifier, Archive(node, receiver).address, calling="VIEWER", destination="VIEWER")
        path = receiver.received[held.rendition.derived_uid]
        assert pixel_digest(integer_pixels(path)) == made.output_digest
        for kept in ModelRows(node.index.engine).files("mammo", digest):
            node.store.delete(kept.digest)
    shutil.rmtree(tmp_path / "a" / "models")
    receiver.received.clear()
    with Node(settings) as node:
        archive = Archive(node, receiver)
        final = client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
        assert final.Status == 0x0000
    assert digest in caplog.text
    assert np.array_equal(integer_pixels(receiver.received[ds.SOPInstanceUID]), integer_pixels(file))
    assert held.rendition.derived_uid not in receiver.received
