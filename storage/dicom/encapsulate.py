"""Encodes frames losslessly for sending: the codestreams of PS3.5 section 8.2 and Annex A.4, and JPEG XL.

Pixels are unsigned, of one sample and 8 or 16 bits. Every frame is decoded again and compared before it is sent.
pydicom's encoders are not used: GDCM's RLE encoder ends the process on 8-bit frames of an odd number of pixels, and
the OpenJPEG plug-in refuses frames with a side below 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless, JPEGLSLossless, RLELossless

from storage.dicom.codestreams import check_codestream
from storage.dicom.element_walk import UNDEFINED
from storage.dicom.elements import codecs_of, readable_items
from storage.dicom.unused_bits import decoder_options
from storage.errors import PixelError

JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
JPEG_XL = {
    JPEG_XL_LOSSLESS: "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
"""Names of the JPEG XL transfer syntaxes, which pydicom 3.0 lacks."""

_ALWAYS_LOSSY = {f"1.2.840.10008.1.2.4.{part}" for part in (50, 51)}
"""JPEG Baseline and Extended."""
LOSSY_SYNTAXES = _ALWAYS_LOSSY | {f"1.2.840.10008.1.2.4.{part}" for part in (81, 91, 93, 111, 112, 203)}
"""Transfer syntaxes whose pixels count as lossy. Some of them may hold codestreams without loss."""

Frame = NDArray[Any]
"""One frame: uint8 or uint16, shape (rows, columns)."""


DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"


def register_newer_syntaxes() -> None:
    """Add the JPEG XL transfer syntaxes and that of deflated frames to pydicom's dictionary, for this process."""
    from pydicom._uid_dict import UID_dictionary

    for uid, name in {**JPEG_XL, DEFLATED_FRAMES: "Deflated Image Frame Compression"}.items():
        UID_dictionary.setdefault(uid, (name, "Transfer Syntax", "", "", name.replace(" ", "")))


def encapsulated(dataset: Dataset, syntax: str) -> None:
    """Replace native little-endian pixels by their lossless encoding in ``syntax``.

    Raises PixelError if the pixels are of another kind, or if a frame does not decode to the same values.
    """
    native = bytes(dataset.PixelData)
    frames = _frames(dataset, native)
    codestreams = [bytes(_ENCODE[syntax](frame, int(dataset.BitsStored))) for frame in frames]
    drop_offset_tables(dataset)
    dataset.PixelData = encapsulate(codestreams, has_bot=len(frames) > 1)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    for number, frame in enumerate(frames):
        if not np.array_equal(_decoded(dataset, number, len(frames), syntax), frame):
            raise PixelError(f"frame {number + 1} in {syntax} does not decode to its original values")


def drop_offset_tables(dataset: Dataset) -> None:
    """Remove the Extended Offset Table, its lengths and their total, which are wrong for native pixels and for other
    codestreams."""
    for tag in (0x7FE00001, 0x7FE00002, 0x7FE00003):
        if tag in dataset:
            del dataset[tag]


def describe_as_native(dataset: Dataset, received: str) -> None:
    """Adapt a header to pixels that were decompressed from the transfer syntax ``received``."""
    drop_offset_tables(dataset)
    drop_encapsulated_icon(dataset)
    _declare_lossy(dataset, received)


def _declare_lossy(dataset: Dataset, syntax: str) -> None:
    """State that decompressed pixels were compressed with loss (PS3.3 C.7.6.1.1.5), if the header does not say so.

    If the transfer syntax also allows lossless codestreams, a header that says 00 is believed.
    """
    stated = str(dataset.get("LossyImageCompression", None) or "").strip()
    if syntax in _ALWAYS_LOSSY or (syntax in LOSSY_SYNTAXES and stated != "00"):
        dataset.add_new("LossyImageCompression", "CS", "01")


def drop_encapsulated_icon(dataset: Dataset) -> None:
    """Remove an icon whose own pixels are encapsulated, since they have the transfer syntax of the data set (PS3.5
    A.4), which changes. Icon Image Sequence is of type 3."""
    icon = Tag("IconImageSequence")
    if icon not in dataset:
        return
    for item in readable_items(dataset, icon, codecs_of(dataset)):
        pixels: Any = item.get_item(0x7FE00010)
        undefined = getattr(pixels, "length", 0) == UNDEFINED  # of an element that pydicom has not converted
        if undefined or getattr(pixels, "is_undefined_length", False):
            del dataset[icon]
            return


def decoded_jpeg_xl(value: bytes, frames: int) -> list[Frame]:
    """The frames of an encapsulated JPEG XL value. Raises PixelError."""
    try:
        codestreams = list(generate_frames(value, number_of_frames=frames))[:frames]
        for codestream in codestreams:
            check_codestream(codestream)
        if len(codestreams) < frames:
            raise PixelError(f"codestream cannot be decoded: {len(codestreams)} frames are found, not {frames}")
        return [np.asarray(imagecodecs.jpegxl_decode(codestream)) for codestream in codestreams]
    except PixelError:
        raise
    except Exception as error:
        raise PixelError(f"codestream cannot be decoded: {error}") from error


def _frames(dataset: Dataset, native: bytes) -> list[Frame]:
    kind = (int(dataset.get("SamplesPerPixel", 1)), int(dataset.BitsAllocated), int(dataset.PixelRepresentation))
    if kind not in ((1, 8, 0), (1, 16, 0)):
        raise PixelError("only unsigned single-sample pixels of 8 or 16 bits are encoded")
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    values = np.frombuffer(native, "<u2" if kind[1] == 16 else "u1")
    if values.size < rows * columns * count or not rows * columns:
        raise PixelError("pixel data is short")
    return list(values[: rows * columns * count].reshape(count, rows, columns))


def _decoded(dataset: Dataset, number: int, count: int, syntax: str) -> Frame:
    """Decode one frame, for RLE and JPEG 2000 by a library other than the encoder's."""
    if syntax == JPEG_XL_LOSSLESS:
        return decoded_jpeg_xl(dataset.PixelData, count)[number]
    if syntax == JPEGLSLossless:
        codestreams = generate_frames(dataset.PixelData, number_of_frames=count)
        return np.asarray(imagecodecs.jpegls_decode(list(codestreams)[number]))
    options = decoder_options(syntax, int(dataset.BitsAllocated))
    return np.asarray(pixel_array(dataset, index=number, raw=True, **options))


def _htj2k(frame: Frame, bits: int) -> bytes:
    """Encode in HTJ2K with Bits Stored as the precision (PS3.5 8.2), unless a pixel has more bits.

    OpenJPH takes the precision of the array, and subtracts half its range (ISO/IEC 15444-1 G.1). The offset leaves half
    the range of ``bits`` to subtract, and byte 42, in the segment SIZ, states their number for decoders.
    """
    whole = frame.dtype.itemsize * 8
    if not 0 < bits <= whole or int(frame.max()) >> bits:
        bits = whole
    offset = (1 << (whole - 1)) - (1 << (bits - 1))
    codestream = bytearray(imagecodecs.htj2k_encode(frame + frame.dtype.type(offset), reversible=True))
    codestream[42] = bits - 1
    return bytes(codestream)


def _rle(frame: Frame, bits: int) -> bytes:
    """RLE Lossless (PS3.5 Annex G): one segment per byte of a sample, high byte first, rows packed separately."""
    planes = frame[..., None].view(np.uint8)[..., ::-1] if frame.dtype.itemsize == 2 else frame[..., None]
    segments = []
    for plane in range(planes.shape[2]):
        rows = np.ascontiguousarray(planes[:, :, plane])
        segment = b"".join(bytes(imagecodecs.packbits_encode(row.tobytes())) for row in rows)
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = [64]
    for segment in segments[:-1]:
        offsets.append(offsets[-1] + len(segment))
    header = np.zeros(16, "<u4")
    header[0], header[1 : 1 + len(segments)] = len(segments), offsets
    return header.tobytes() + b"".join(segments)


_ENCODE: dict[str, Callable[[Frame, int], bytes | bytearray]] = {
    str(JPEGLSLossless): lambda frame, bits: imagecodecs.jpegls_encode(frame, level=0),
    str(JPEG2000Lossless): lambda frame, bits: imagecodecs.jpeg2k_encode(
        frame, reversible=True, codecformat="j2k", bitspersample=bits
    ),
    str(HTJ2KLossless): _htj2k,
    JPEG_XL_LOSSLESS: lambda frame, bits: imagecodecs.jpegxl_encode(frame, lossless=True, effort=3, usecontainer=False),
    str(RLELossless): _rle,
}
"""Encoders of a frame by transfer syntax; the number is Bits Stored."""
