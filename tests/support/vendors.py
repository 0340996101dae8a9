"""Makes mammograms as the large vendors send them for presentation: synthetic pixels under their kind of header.

All values are made up. Taken from real images are the properties that are hard for a reader: matrix, bits, photometric
interpretation, values in the air, padding, windows and lookup tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence

from tests.support.samples import mammogram

Pixels = NDArray[np.uint16]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

ROWS, COLUMNS = 700, 500
LARGEST = (5355, 4915)
"""The matrix of a Sectra MicroDose."""


def vendor_mammogram(vendor: str, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Dataset:
    """A mammogram of ``rows`` x ``columns`` pixels as ``vendor``, one of ``VENDORS``, sends it."""
    tissue, inside = breast_tissue(rows, columns, seed)
    return VENDORS[vendor](tissue, inside, np.random.default_rng(seed + 1))


def breast_tissue(rows: int, columns: int, seed: int = 0) -> tuple[Image, Mask]:
    """Tissue from 0 to 1, float32: dense tissue is bright, and it is dimmer towards the skin. Also the mask of the
    breast, bool."""
    from scipy import fft

    random = np.random.default_rng(seed)
    y, x = np.ogrid[0:rows, 0:columns]
    radius = np.sqrt(((y - rows / 2) / (rows * 0.40)) ** 2 + (x / (columns * 0.70)) ** 2).astype(np.float32)
    frequency = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)[None, :]).astype(np.float32)
    frequency[0, 0] = 1
    spectrum = fft.rfft2(random.standard_normal((rows, columns), dtype=np.float32))
    spectrum /= frequency**1.6
    image = fft.irfft2(spectrum, s=(rows, columns)).astype(np.float32)
    image = 0.5 + 0.1 * (image - image.mean()) / image.std()
    image += np.float32(0.004) * random.standard_normal((rows, columns), dtype=np.float32)
    image *= np.clip((1 - radius) * 8, 0.3, 1)
    return np.clip(image, 0.08, 0.98), radius < 1


def _stored(tissue: Image, inside: Mask, bits: int, air: Any, low: int = 0, *, dark: bool = False) -> Pixels:
    """Stored values of ``bits`` bits: tissue from ``low`` up, and ``air``, one value or an array, around it. ``dark``:
    dense tissue has small values; air is not inverted."""
    top = (1 << bits) - 1
    values = np.clip(np.rint(tissue * top), low, top)
    return np.where(inside, top - values if dark else values, air).astype(np.uint16)


def ge(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """GE Senographe: padding 0 to 30, all of which occur in the air; three sigmoid windows."""
    skin = np.where(random.random(inside.shape) < 0.97, 0, random.integers(1, 31, inside.shape))
    ds = mammogram(_stored(tissue, inside, 12, skin, low=31), bits=12, PixelPaddingValue=0)
    ds.add_new(0x00280121, "US", 30)
    ds.WindowCenter, ds.WindowWidth = [2100, 2100, 2100], [1600, 1280, 1920]
    ds.WindowCenterWidthExplanation = ["NORMAL", "HARDER", "SOFTER"]
    ds.VOILUTFunction = "SIGMOID"
    return _made_by(ds, "GE MEDICAL SYSTEMS", "Senographe Pristina")


def hologic(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Hologic Selenia Dimensions: 12 bits, air 0 without padding; two sigmoid windows."""
    ds = mammogram(_stored(tissue, inside, 12, 0), bits=12, VOILUTFunction="SIGMOID")
    ds.WindowCenter, ds.WindowWidth = [2047, 1800], [2500, 2000]
    ds.WindowCenterWidthExplanation = ["User1", "User2"]
    return _made_by(ds, "HOLOGIC, Inc.", "Selenia Dimensions")


def c_view(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Hologic, a synthesised view: 10 bits in 16."""
    ds = mammogram(_stored(tissue, inside, 10, 0), bits=10)
    ds.WindowCenter, ds.WindowWidth = 540, 580
    return _made_by(ds, "HOLOGIC, Inc.", "Selenia Dimensions C-View")


def lorad(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Lorad Selenia: 14 bits, MONOCHROME1, air at the top."""
    ds = _inverse(mammogram(_stored(tissue, inside, 14, 16383, dark=True), bits=14))
    ds.WindowCenter, ds.WindowWidth = 8000, 9000
    return _made_by(ds, "LORAD", "Lorad Selenia")


def siemens(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Siemens Mammomat: collimated edges of one value that are padding, faint noise in the air, two windows."""
    rows, columns = inside.shape
    pixels = _stored(tissue, inside, 12, 60 + random.normal(0, 4, inside.shape), low=20)
    pixels[: rows // 25] = pixels[-(rows // 25) :] = pixels[:, -(columns // 20) :] = 0
    ds = mammogram(pixels, bits=12, PixelPaddingValue=0)
    ds.WindowCenter, ds.WindowWidth = [2000, 2200], [2400, 3200]
    return _made_by(ds, "SIEMENS", "Mammomat Inspiration")


def siemens_inverse(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Siemens Novation: MONOCHROME1. The air has one high value, and no attribute names it."""
    ds = _inverse(mammogram(_stored(tissue, inside, 12, 4095, dark=True), bits=12))
    ds.WindowCenter, ds.WindowWidth = 2047, 2800
    return _made_by(ds, "SIEMENS", "MAMMOMAT Novation DR")


def fuji(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Fuji CR: 10 bits, MONOCHROME1, noise in the air."""
    air = np.clip(1010 + random.normal(0, 6, inside.shape), 0, 1023)
    ds = _inverse(mammogram(_stored(tissue, inside, 10, air, dark=True), bits=10))
    ds.WindowCenter, ds.WindowWidth = 511, 1024
    return _made_by(ds, "FUJI PHOTO FILM Co., ltd.", "FCR PROFECT CS")


def microdose(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Philips (Sectra) MicroDose: real images have 5355 x 4915 pixels. Padding 0 around, a sigmoid window."""
    ds = mammogram(_stored(tissue, inside, 12, 0, low=1), bits=12, PixelPaddingValue=0, VOILUTFunction="SIGMOID")
    ds.WindowCenter, ds.WindowWidth = 2000, 2600
    return _made_by(ds, "Philips Digital Mammography Sweden AB", "L30")


def planmed(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Planmed Nuance: 16 bits, a window given exactly."""
    air = np.clip(900 + random.normal(0, 60, inside.shape), 0, None)
    ds = mammogram(_stored(tissue, inside, 16, air), bits=16, VOILUTFunction="LINEAR_EXACT")
    ds.WindowCenter, ds.WindowWidth = 33000, 42000
    return _made_by(ds, "Planmed", "Planmed Nuance")


def ims(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """IMS Giotto: 13 bits; the first of its windows is useless."""
    air = np.clip(120 + random.normal(0, 8, inside.shape), 0, None)
    ds = mammogram(_stored(tissue, inside, 13, air), bits=13)
    ds.WindowCenter, ds.WindowWidth = [0, 4100], [1, 5200]
    return _made_by(ds, "I.M.S. srl", "GIOTTO IMAGE SDL/W")


def agfa(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Agfa CR: 12 bits, no window but a VOI LUT Sequence."""
    ds = mammogram(_stored(tissue, inside, 12, 0), bits=12, WindowCenter=None, WindowWidth=None)
    values = 4095 / (1 + np.exp(-4 * (np.arange(4096) - 2000) / 2400))
    ds.VOILUTSequence = Sequence([_table(values, "AGFA curve")])
    return _made_by(ds, "Agfa-Gevaert", "DX-M")


def carestream(tissue: Image, inside: Mask, random: np.random.Generator) -> Dataset:
    """Carestream CR: 12 bits, MONOCHROME1, padding the largest value; a table before one window."""
    ds = _inverse(mammogram(_stored(tissue, inside, 12, 4095, low=1, dark=True), bits=12, PixelPaddingValue=4095))
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        delattr(ds, keyword)
    table = _table(np.arange(4096) * 4.0, "optical density")
    table.ModalityLUTType = "OD"
    ds.ModalityLUTSequence = Sequence([table])
    ds.WindowCenter, ds.WindowWidth = 8192, 12000
    return _made_by(ds, "Carestream Health", "DirectView CR 975")


VENDORS: dict[str, Callable[[Image, Mask, np.random.Generator], Dataset]] = {
    "ge": ge,
    "hologic": hologic,
    "c-view": c_view,
    "lorad": lorad,
    "siemens": siemens,
    "siemens inverse": siemens_inverse,
    "fuji": fuji,
    "microdose": microdose,
    "planmed": planmed,
    "ims": ims,
    "agfa": agfa,
    "carestream": carestream,
}


def pixels_of(ds: Dataset) -> Pixels:
    """The stored values: uint16, shape (rows, columns)."""
    return np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)


def _made_by(ds: Dataset, manufacturer: str, model: str) -> Dataset:
    ds.Manufacturer, ds.ManufacturerModelName = manufacturer, model
    return ds


def _inverse(ds: Dataset) -> Dataset:
    ds.PhotometricInterpretation, ds.PresentationLUTShape = "MONOCHROME1", "INVERSE"
    return ds


def _table(values: NDArray[np.float64], explanation: str) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(values), 0, 16])
    item.LUTExplanation = explanation
    item.add_new(0x00283006, "OW", np.rint(values).astype("<u2").tobytes())
    return item
