"""Measures the milliseconds of usual C-FIND queries on a large archive.

It fills an index in a temporary folder directly through the tables (8 instances per study, 2 studies per patient), then
queries as a viewer would and encodes every answer. Run: ``python benchmarks/find.py [--json] [--instances N]``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pydicom import Dataset
from pydicom.sequence import Sequence
from pynetdicom.dsutils import encode
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import Engine, insert

from node.archive.query.find import find
from node.archive.query.identifier import Root
from node.config import RenditionPolicy
from storage.dicom.levels import columns_of, levels_of
from storage.index.connection import connect
from storage.index.tables import instance, metadata, patient, series, study
from storage.records import InstanceState

FIRST_DAY, DAYS = date(2015, 1, 1), 3650
MG = "1.2.840.10008.5.1.4.1.1.1.2"
VIEWS = [("L", "CC"), ("R", "CC"), ("L", "MLO"), ("R", "MLO")]
UID = "1.2.826.0.1.3680043.10.1234.{}"


@dataclass(frozen=True)
class Archive:
    """The part of an Index that ``find`` uses."""

    engine: Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON only")
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100, help="queries of each kind")
    options = parser.parse_args()
    console = Console(stderr=True, quiet=options.json)
    with tempfile.TemporaryDirectory(prefix="latent-pacs-find-") as folder:
        engine = connect(f"sqlite:///{folder}/index.sqlite")
        metadata.create_all(engine)
        started = time.perf_counter()
        fill(engine, options.instances, console)
        filled = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        console.print(f"{options.instances:,} instances, {size / 1e9:.2f} GB, filled in {filled:.0f} s")
        figures = measure(Archive(engine), options.instances, options.queries)
        engine.dispose()
    if options.json:
        p95 = {kind: round(found["p95_ms"], 2) for kind, found in figures.items()}
        print(json.dumps({"instances": options.instances, "p95_ms": p95}))
        return
    table = Table("query", "answers (median)", "median ms", "p95 ms", title=f"{options.instances:,} instances")
    for kind, found in figures.items():
        table.add_row(kind, f"{found['answers']:.0f}", f"{found['median_ms']:.1f}", f"{found['p95_ms']:.1f}")
    Console().print(table)


# --- the queries ---


def measure(archive: Archive, instances: int, queries: int) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of the time from the identifier to the last encoded answer."""
    kinds: dict[str, Callable[[random.Random, int], Dataset]] = {
        "patient": patient_query,
        "study": study_query,
        "series": series_query,
        "image": image_query,
        "study_by_date": week_query,
    }
    figures = {}
    for kind, make in kinds.items():
        chance = random.Random(kind)
        asked = [make(chance, max(1, instances // 16)) for _ in range(queries)]
        seconds, answers = zip(*(timed(archive, identifier) for identifier in asked), strict=True)
        figures[kind] = {
            "answers": statistics.median(answers),
            "median_ms": 1000 * statistics.median(seconds),
            "p95_ms": 1000 * sorted(seconds)[int(0.95 * (len(seconds) - 1))],
        }
    return figures


def timed(archive: Archive, identifier: Dataset) -> tuple[float, int]:
    started = time.perf_counter()
    root = Root.PATIENT if identifier.QueryRetrieveLevel == "PATIENT" else Root.STUDY
    policy = RenditionPolicy.RECONSTRUCTED
    answers = find(archive, identifier, root, policy=policy, retrieve_ae_title="LATENTPACS", implicit=False)
    count = sum(1 for answer in answers if encode(answer, False, True))
    return time.perf_counter() - started, count


def asking(level: str, *empty: str, **keys: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword in empty:
        setattr(identifier, keyword, None)
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def patient_query(chance: random.Random, patients: int) -> Dataset:
    """Patients by ID, by name or by the beginning of a name."""
    number = chance.randrange(patients)
    key = chance.choice([{"PatientID": f"{number:08}"}, {"PatientName": name(number)}, {"PatientName": start(number)}])
    return asking("PATIENT", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", **key)


def study_query(chance: random.Random, patients: int) -> Dataset:
    """Studies by patient ID, accession number or name, with counts and modalities."""
    number = chance.randrange(patients)
    key = chance.choice(
        [{"PatientID": f"{number:08}"}, {"AccessionNumber": f"A{number}.1"}, {"PatientName": start(number)}]
    )
    return asking("STUDY", *STUDY_LIST, **key)


def week_query(chance: random.Random, _patients: int) -> Dataset:
    """Studies of one week."""
    first = FIRST_DAY + timedelta(days=chance.randrange(DAYS - 7))
    return asking("STUDY", *STUDY_LIST, StudyDate=f"{first:%Y%m%d}-{first + timedelta(days=6):%Y%m%d}")


def series_query(chance: random.Random, patients: int) -> Dataset:
    keys = ("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "NumberOfSeriesRelatedInstances")
    return asking("SERIES", *keys, StudyInstanceUID=UID.format(f"{chance.randrange(patients)}.1"))


def image_query(chance: random.Random, patients: int) -> Dataset:
    number = chance.randrange(patients)
    above = {"StudyInstanceUID": UID.format(f"{number}.1"), "SeriesInstanceUID": UID.format(f"{number}.1.1")}
    keys = ("SOPInstanceUID", "SOPClassUID", "InstanceNumber", "ViewPosition", "ImageLaterality", "Rows", "Columns")
    return asking("IMAGE", *keys, **above)


STUDY_LIST = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "StudyDescription",
    "ModalitiesInStudy",
    "NumberOfStudyRelatedInstances",
)


# --- the archive ---


def fill(engine: Engine, instances: int, console: Console) -> None:
    patients = max(1, instances // 16)
    batch = 500
    starts = track(range(0, patients, batch), description="filling", console=console, disable=console.quiet)
    template = mammogram()
    for first in starts:
        rows: dict[str, list[dict[str, Any]]] = {"patient": [], "study": [], "series": [], "instance": []}
        for number in range(first, min(first + batch, patients)):
            for table, row in rows_of(template, number):
                rows[table].append(row)
        with engine.begin() as connection:
            for filled in (patient, study, series, instance):
                connection.execute(insert(filled), rows[filled.name])


def rows_of(template: Dataset, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a patient with 2 studies of 2 series of 4 views. One header is parsed, and edited for the other rows."""
    chance = random.Random(number)
    template.PatientID, template.PatientName = f"{number:08}", name(number)
    template.PatientBirthDate = f"{date(1940, 1, 1) + timedelta(days=chance.randrange(16_000)):%Y%m%d}"
    base = columns_of(levels_of(template))
    yield "patient", {"key": number + 1, **base["patient"]}
    for which in (1, 2):
        study_key = 2 * number + which
        uid = UID.format(f"{number}.{which}")
        day = f"{FIRST_DAY + timedelta(days=chance.randrange(DAYS)):%Y%m%d}"
        changed = {"0020000D": uid, "00080020": day, "00080050": f"A{number}.{which}"}
        columns = {"study_instance_uid": uid, "study_date": day, "accession_number": changed["00080050"]}
        yield "study", edited(base["study"], changed, key=study_key, patient_key=number + 1, **columns)
        for part in (1, 2):
            series_key = 2 * (study_key - 1) + part
            series_uid = f"{uid}.{part}"
            own = {"key": series_key, "study_key": study_key, "series_instance_uid": series_uid}
            yield "series", edited(base["series"], {"0020000E": series_uid, "00200011": part}, **own)
            for view, (laterality, position) in enumerate(VIEWS, start=1):
                sop = f"{series_uid}.{view}"
                shown = {"00080018": sop, "00200013": view, "00200062": laterality, "00185101": position}
                own = {"series_key": series_key, "sop_instance_uid": sop, "instance_number": view, **REST}
                own["key"] = 4 * (series_key - 1) + view
                yield "instance", edited(base["instance"], shown, **own)


def edited(row: dict[str, Any], attributes: dict[str, Any], **columns: Any) -> dict[str, Any]:
    changed = {tag: {**row["attributes"].get(tag, {}), "Value": [value]} for tag, value in attributes.items()}
    return {**row, "attributes": {**row["attributes"], **changed}, **columns}


REST = {
    "transfer_syntax_uid": "1.2.840.10008.1.2.4.70",
    "original_digest": "",
    "original_bytes": 15_000_000,
    "pixel_bytes": 27_000_000,
    "pixel_warning": "",
    "calling_aet": "MAMMO1",
    "received_at": datetime(2024, 1, 1),
    "state": InstanceState.RECEIVED.value,
    "reason": "",
    "reason_code": "",
    "rendition_key": None,
    "attempts": 0,
}


def name(number: int) -> str:
    return f"{start(number)[:-1]}{_word(number * 7919 % 300)}"


def start(number: int) -> str:
    """The beginning of a name. Of a million instances, about thirty patients share each family name."""
    return f"{_word(number * 104_729 % 2000)}^*"


def _word(number: int) -> str:
    consonants, vowels = "BDFGKLMNPRST", "AEIOU"
    word = ""
    for _ in range(3):
        number, consonant = divmod(number, len(consonants))
        number, vowel = divmod(number, len(vowels))
        word += consonants[consonant] + vowels[vowel]
    return word


_ATTRIBUTES = {
    "SOPClassUID": MG,
    "SOPInstanceUID": "1.2",
    "StudyInstanceUID": "1.2",
    "SeriesInstanceUID": "1.2",
    "PatientSex": "F",
    "StudyDate": "20240105",
    "StudyTime": "101530.123",
    "AccessionNumber": "A1",
    "StudyID": "1",
    "StudyDescription": "MAMMOGRAPHY SCREENING BILATERAL",
    "ReferringPhysicianName": "REFERRER^NAME",
    "PatientAge": "052Y",
    "Modality": "MG",
    "SeriesNumber": "1",
    "SeriesDescription": "STANDARD SCREENING",
    "SeriesDate": "20240105",
    "SeriesTime": "101530",
    "Manufacturer": "MANUFACTURER",
    "ManufacturerModelName": "MODEL 3D",
    "InstitutionName": "RADIOLOGY AT THE MARKET",
    "StationName": "MAMMO1",
    "BodyPartExamined": "BREAST",
    "ImageLaterality": "L",
    "ViewPosition": "CC",
    "InstanceNumber": "1",
    "ContentDate": "20240105",
    "ContentTime": "101530.5",
    "AcquisitionDate": "20240105",
    "AcquisitionTime": "101530.4",
    "PhotometricInterpretation": "MONOCHROME2",
    "PresentationIntentType": "FOR PRESENTATION",
    "KVP": "29.0",
    "Exposure": "85",
    "ExposureTime": "1200",
    "AnodeTargetMaterial": "TUNGSTEN",
    "FilterMaterial": "RHODIUM",
    "BodyPartThickness": "58",
    "CompressionForce": "102.3",
    "OrganDose": "0.0158",
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
    "BreastImplantPresent": "NO",
    "PartialView": "NO",
}


def mammogram() -> Dataset:
    """A header like those of mammography systems."""
    header = Dataset()
    for keyword, value in _ATTRIBUTES.items():
        setattr(header, keyword, value)
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.PatientOrientation = ["A", "R"]
    header.ImagerPixelSpacing = ["0.07", "0.07"]
    header.Rows, header.Columns, header.BitsAllocated, header.BitsStored = 4096, 3328, 16, 12
    header.SamplesPerPixel, header.PixelRepresentation = 1, 0
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399162004", "SCT", "cranio-caudal"
    header.ViewCodeSequence = Sequence([code])
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "76752008", "SCT", "Breast"
    header.AnatomicRegionSequence = Sequence([region])
    return header


if __name__ == "__main__":
    main()
