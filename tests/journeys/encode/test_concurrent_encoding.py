"""Proves that several images are encoded at once (node/app/encoder_workers.py), in processes apart from the one for
viewers.
"""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from node.app import Node
from node.app.encoder_workers import EACH, encoders_beside
from node.codec.decode import SideInformation
from node.codec.encode.base_coding import make_base
from node.codec.encode.noise_fitting import measure_deviation
from node.codec.encode.source_image import read_source_and_reference
from node.codec.rendering import Rendering
from node.dimse import client
from node.dimse.client import Receiver
from node.workers.machine import available_memory
from node.workers.pool import Priority, WorkerPool
from node.workers.rendering_again import NumericsRequest
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.errors import ConfigError
from storage.index import Index
from storage.index.tables import instance
from storage.records import InstanceState, OperatingPoint
from tests.conftest import Archive, settings_for, wait_for
from tests.support.samples import breast, mammogram, write

TWO = {"archivist": {"poll": 0.1, "concurrency": 2}}


def sent(archive: Archive, folder: Path, count: int) -> dict[str, Any]:
    """Mammograms stored over one association, by UID."""
    images = [mammogram(breast(seed=number % 4)) for number in range(count)]
    paths = [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in images]
    statuses: list[int] = []
    client.store(paths, archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0x0000] * count
    return {ds.SOPInstanceUID: ds for ds in images}


def in_hand(node: Node) -> list[Any]:
    """The number of rows with a lease."""
    with node.index.engine.connect() as connection:
        return list(connection.execute(select(instance).where(instance.c.lease_owner.is_not(None))))


@pytest.mark.slow
def test_two_are_in_hand_and_what_is_made_is_served_by_another_process(tmp_path: Path, receiver: Receiver) -> None:
    """There are two leases at a time, never three. The worker for viewers has another number of threads, and makes
    exactly the same pixels."""
    settings = settings_for(tmp_path / "archive", receiver.port, **TWO, reconstruct={"threads": 2, "cache": 0})
    with Node(settings) as node:
        archive, most, done = Archive(node, receiver), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                most.append(len(in_hand(node)))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            images = sent(archive, tmp_path, 4)
            held = [archive.settled(uid) for uid in images]
        finally:
            done.set()
            watching.join()
        assert max(most) == 2
        wait_for(lambda: not node.archivist.busy, what="the archivist rests")
        for one in held:
            assert one.state is InstanceState.VERIFIED
            assert one.rendition is not None
            ds = images[one.sop_instance_uid]
            identifier = client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, one.sop_instance_uid)
            final = client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
            assert final.Status == 0x0000
            made = pixel_digest(integer_pixels(receiver.received[one.rendition.derived_uid]))
            assert made == one.rendition.output_digest


def test_the_worker_for_viewers_is_ready_before_the_first(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    with Node(settings_for(tmp_path / "archive", **TWO)) as node:
        wait_for(lambda: node.pool.idle, what="the worker is ready")
        assert len(set(multiprocessing.active_children()) - before) == 1
        done = node.pool.submit(NumericsRequest(), Priority.VIEWER)
        done.result(timeout=300)


@pytest.mark.slow
def test_all_that_are_in_hand_go_back_undone_at_a_stop(tmp_path: Path, receiver: Receiver) -> None:
    """No attempt is counted, and the images are encoded after the next start."""
    settings = settings_for(tmp_path / "archive", receiver.port, **TWO)
    with Node(settings) as node:
        images = sent(Archive(node, receiver), tmp_path, 3)
        wait_for(lambda: len(in_hand(node)) == 2, what="two in hand")
        claimed = {row.sop_instance_uid for row in in_hand(node)}
    index = Index.open(settings.storage.database_url)
    with index.engine.connect() as connection:
        rows = [row for row in connection.execute(select(instance)) if row.sop_instance_uid in claimed]
    index.close()
    waiting = [row for row in rows if row.state == InstanceState.RECEIVED]
    assert waiting  # stopped in time
    assert all(row.lease_owner is None and row.attempts == 0 for row in waiting)
    with Node(settings) as node:
        archive = Archive(node, receiver)
        for uid in images:
            assert archive.settled(uid).state is InstanceState.VERIFIED


@pytest.mark.parametrize(("threads", "at_once", "size", "each"), [(4, 0, 4, 1), (8, 2, 2, 4), (2, 5, 5, 1)])
def test_cores_are_shared(tmp_path: Path, threads: int, at_once: int, size: int, each: int) -> None:
    settings = settings_for(tmp_path, archivist={"concurrency": at_once}, reconstruct={"threads": threads})
    room = available_memory()
    beside = WorkerPool(settings.reconstruct)
    encoders = encoders_beside(beside, settings)
    try:
        if at_once or room * 0.75 >= threads * EACH:
            assert encoders.size == size
            assert encoders._settings.threads == each
    finally:
        encoders.close()
        beside.close()


def test_one_at_a_time_shares_the_worker_of_viewers(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, archivist={"concurrency": 1})
    pool = WorkerPool(settings.reconstruct)
    try:
        assert encoders_beside(pool, settings) is pool
    finally:
        pool.close()


def test_what_depends_on_the_number_of_threads_is_encoded_where_it_is_served(tmp_path: Path) -> None:
    pool = WorkerPool(settings_for(tmp_path).reconstruct)
    try:
        settings = settings_for(tmp_path, archivist={"concurrency": 0}, reconstruct={"upscaler": "sd_x2", "threads": 4})
        assert encoders_beside(pool, settings) is pool
    finally:
        pool.close()
    with pytest.raises(
        ConfigError, match=r"archivist\.concurrency: the pixels of sd_x2 depend on the number of threads"
    ):
        settings_for(tmp_path, archivist={"concurrency": 2}, reconstruct={"upscaler": "sd_x2"})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_mammo_makes_the_same_pixels_with_any_number_of_threads(seed: int, tmp_path: Path) -> None:
    """A worker with one thread has verified the pixels, and one with all threads must make them again."""
    import torch

    from node.upscalers.mammo import Mammo

    path = write(mammogram(breast(700, 600, seed=seed)), tmp_path / "x.dcm")
    source, reference = read_source_and_reference(path, "")
    base = make_base(source, OperatingPoint(2, "jpegxl", 0.4))
    plain = base.operator.lift(base.samples())
    side = SideInformation(noise=measure_deviation(reference.image, plain, reference.breast, reference.counted))
    network = Mammo()
    before, made = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            made.add(pixel_digest(Rendering(base, network, side, seed=seed, steps=1).pixels(draw=True)))
    finally:
        torch.set_num_threads(before)
    assert len(made) == 1
