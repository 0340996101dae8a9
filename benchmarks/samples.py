"""Makes synthetic Digital Mammography objects for benchmarks and tests, and writes DICOM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from storage.dicom.dicomfile import file_meta, write_preamble
from storage.dicom.writing import encode

MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"


def breast(rows: int = 640, columns: int = 512, *, bits: int = 12, seed: int = 0) -> NDArray[np.uint16]:
    """A breast-like image: half an ellipse with 1/f texture, quantum noise and eight bright specks."""
    random = np.random.default_rng(seed)
    top = (1 << bits) - 1
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    inside = ((y - rows / 2) / (rows * 0.42)) ** 2 + (x / (columns * 0.8)) ** 2 < 1
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(random.standard_normal((rows, columns))) / frequency**1.6
    tissue = np.fft.ifft2(spectrum).real
    tissue = (tissue - tissue.mean()) / tissue.std()
    image = 0.45 + 0.1 * tissue + 0.004 * random.standard_normal((rows, columns))
    for _ in range(8):
        row, column = random.integers(rows // 4, 3 * rows // 4), random.integers(10, columns // 2)
        image[row : row + 3, column : column + 3] += 0.15
    return np.where(inside, np.clip(image, 0.05, 1.0) * top, 0).astype(np.uint16)


def mammogram(pixels: NDArray[np.uint16] | None = None, *, bits: int = 12, **changes: Any) -> Dataset:
    """A Digital Mammography X-Ray Image (For Presentation) in which dciodvfy finds no error.

    ``changes``: attributes to set, by keyword; None deletes an attribute.
    """
    pixels = breast(bits=bits) if pixels is None else pixels
    ds = Dataset()
    _identity(ds)
    _acquisition(ds)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "IDENTITY"
    ds.WindowCenter, ds.WindowWidth = 1 << (bits - 1), 1 << bits
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def _identity(ds: Dataset) -> None:
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SOPClassUID = UID(MAMMOGRAPHY)
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.StudyDate, ds.StudyTime = "20260102", "101112"
    ds.SeriesDate, ds.SeriesTime = "20260102", "101200"
    ds.AcquisitionDate, ds.AcquisitionTime = "20260102", "101212"
    ds.ContentDate, ds.ContentTime = "20260102", "101213"
    ds.AccessionNumber = "ACC0001"
    ds.Modality = "MG"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.Manufacturer = "Latent PACS tests"
    ds.ManufacturerModelName = "Phantom"
    ds.DeviceSerialNumber = "1"
    ds.SoftwareVersions = "1"
    ds.ReferringPhysicianName = "Roe^Richard"
    ds.PatientName = "Müller^Anna"
    ds.PatientID = "P0001"
    ds.PatientBirthDate, ds.PatientSex = "19600101", "F"
    ds.StudyID = "S1"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.PatientOrientation = ["A", "F"]
    ds.AnatomicRegionSequence = Sequence([_code("76752008", "SCT", "Breast")])


def _acquisition(ds: Dataset) -> None:
    ds.BodyPartExamined = "BREAST"
    ds.ImageLaterality = "R"
    ds.OrganExposed = "BREAST"
    view = _code("399162004", "SCT", "cranio-caudal")
    view.ViewModifierCodeSequence = Sequence([])
    ds.ViewCodeSequence = Sequence([view])
    ds.AcquisitionContextSequence = Sequence([])
    ds.PartialView = "NO"
    ds.BreastImplantPresent = "NO"
    ds.KVP = "28"
    ds.ExposureTime = 900
    ds.XRayTubeCurrent = 90
    ds.Exposure = 81
    ds.BodyPartThickness = "52"
    ds.CompressionForce = "90"
    ds.AnodeTargetMaterial = "RHODIUM"
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = "663", "650"
    ds.EstimatedRadiographicMagnificationFactor = "1.02"
    ds.PositionerType = "MAMMOGRAPHIC"
    ds.PositionerPrimaryAngle = "0"
    ds.ImagerPixelSpacing = ["0.094", "0.094"]
    ds.PixelSpacing = ["0.092", "0.092"]
    ds.PixelSpacingCalibrationType = "GEOMETRY"
    ds.PixelSpacingCalibrationDescription = "magnification"
    ds.DetectorType = "DIRECT"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def write(ds: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write a data set as a Part 10 file in an uncompressed transfer syntax."""
    with path.open("wb") as out:
        write_preamble(out, file_meta(ds.SOPClassUID, ds.SOPInstanceUID, syntax))
        out.write(encode(ds, syntax))
    return path


def write_body(body: bytes, path: Path, *, sop_class: str, sop_instance: str, syntax: UID) -> Path:
    """Write a Part 10 file whose data set is ``body``, valid or not."""
    with path.open("wb") as out:
        write_preamble(out, file_meta(sop_class, sop_instance, syntax))
        out.write(body)
    return path
