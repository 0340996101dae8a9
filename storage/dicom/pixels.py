"""Pixels as integers: what the header says of them, whether they can be trusted, and how to decode them.

Decoders are run on a peer's bytes only in worker processes (node/workers/worker.py), since one written in C may
end its process on a hostile codestream.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from storage.dicom.codestreams import check_codestream, check_pixels
from storage.dicom.dicomfile import DataSetFile, encode, file_meta, opened, quiet, write_preamble
from storage.dicom.encapsulate import JPEG_XL, decoded_jpeg_xl, encapsulated
from storage.errors import PixelError, TooManyPixels, Unparseable

_MOST_BYTES = 1 << 62
"""A header that claims more claims this much: the index holds numbers of 64 bits."""


@dataclass(frozen=True)
class PixelShape:
    """The Image Pixel module's numbers (PS3.3 C.7.6.3), as far as they are there and readable."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str

    @classmethod
    def of(cls, header: Dataset) -> PixelShape:
        def number(keyword: str, default: int = 0) -> int:
            try:
                value = header.get(keyword)
                return default if value in (None, "") else max(int(value), 0)
            except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
                return default

        def text(keyword: str) -> str:
            try:
                return str(header.get(keyword) or "")
            except Exception:  # noqa: BLE001
                return ""

        with quiet():
            return cls(
                rows=number("Rows"),
                columns=number("Columns"),
                samples=number("SamplesPerPixel", 1),
                frames=max(number("NumberOfFrames", 1), 1),
                bits_allocated=number("BitsAllocated"),
                bits_stored=number("BitsStored"),
                high_bit=number("HighBit"),
                signed=number("PixelRepresentation") == 1,
                photometric=text("PhotometricInterpretation"),
            )

    @property
    def native_bytes(self) -> int:
        """Bytes of the uncompressed value, before padding to an even length (PS3.5 section 8)."""
        bits = self.rows * self.columns * self.samples * self.frames * self.bits_allocated
        if self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            bits = bits * 2 // 3
        return min((bits + 7) // 8, _MOST_BYTES)

    def check(self) -> None:
        """Raises TooManyPixels where a frame has more than are decoded in this process."""
        check_pixels("header says", self.rows, self.columns, self.samples)


def native_pixel_warning(file: DataSetFile, shape: PixelShape) -> str:
    """Why the pixels cannot be trusted, as far as bytes and bits tell without a decoder; empty when sound."""
    layout = file.layout
    if not layout.has_pixels:
        return "an image with no pixel data" if _promises_pixels(file, shape) else ""
    if layout.truncated:
        return "pixel data ends before its announced length"
    if not (shape.rows and shape.columns and shape.bits_allocated):
        return "pixel data without rows, columns or bits allocated"
    if layout.encapsulated:
        native = not file.transfer_syntax.is_encapsulated
        return "encapsulated pixel data in a transfer syntax for native pixel data" if native else ""
    if file.transfer_syntax.is_compressed and file.transfer_syntax != DeflatedExplicitVRLittleEndian:
        return "native pixel data in a transfer syntax for encapsulated pixel data"
    have, need = layout.value_end - layout.value_start, shape.native_bytes
    if have < need:
        return f"pixel data is short: {have} bytes for {need}"
    if have > need + 1:
        return f"pixel data is too long: {have} bytes for {need}"
    if shape.bits_allocated == 16 and not shape.signed and shape.high_bit < 15:
        order = "<u2" if file.transfer_syntax.is_little_endian else ">u2"
        values = np.frombuffer(file.native_value()[: need // 2 * 2], dtype=order)
        used = int(np.bitwise_or.reduce(values)) if values.size else 0
        if used >> (shape.high_bit + 1):
            return f"pixels have bits set above High Bit {shape.high_bit}"
    return ""


def counted_bytes(file: DataSetFile, shape: PixelShape, warning: str, *, decodable: bool) -> int:
    """Uncompressed bytes of the pixels that are there, whatever the header claims; no frame is without a fragment.

    Of encapsulated pixels that cannot be decoded nobody knows more than what they take. ``warning``: why they are not
    sound; ``decodable``: whether there is a decoder for them.
    """
    layout = file.layout
    held = layout.value_end - layout.value_start
    if not layout.encapsulated or warning or not decodable:
        return min(shape.native_bytes, held)
    frames = min(shape.frames, max(_fragments(file), 1))
    return shape.native_bytes // shape.frames * frames


def _fragments(file: DataSetFile) -> int:
    """How many there are, the offset table left out (PS3.5 A.4)."""
    at, count = file.layout.value_start, -1
    order = "<I" if file.transfer_syntax.is_little_endian else ">I"
    while at + 8 <= file.layout.value_end:
        at += 8 + struct.unpack_from(order, file.data, at + 4)[0]
        count += 1
    return count


def _promises_pixels(file: DataSetFile, shape: PixelShape) -> bool:
    """Rows, columns and bits without pixels, and no address to get them from (Pixel Data Provider URL)."""
    return bool(shape.rows and shape.columns and shape.bits_stored) and 0x00287FE0 not in file.outline()


def integer_pixels(path: Path) -> NDArray[np.uint16]:
    """The stored values of a single-frame, 16-bit, monochrome image: uint16, shape (rows, columns), no rescale.

    Raises PixelError where there are none, or they are of another kind, short, odd or undecodable.
    """
    with opened(path) as file:
        shape = PixelShape.of(file.outline())
        if not file.layout.has_pixels:
            raise PixelError("no pixel data")
        warning = native_pixel_warning(file, shape)
        if warning:
            raise PixelError(warning)
        shape.check()
        if (shape.bits_allocated, shape.samples) != (16, 1):
            raise PixelError(f"pixels of {shape.samples} x {shape.bits_allocated} bits, not of 1 x 16")
        if not file.layout.encapsulated:
            order = "<u2" if file.transfer_syntax.is_little_endian else ">u2"
            count = shape.rows * shape.columns
            flat = np.frombuffer(file.native_value(), dtype=order, count=count)
            return flat.astype(np.uint16).reshape(shape.rows, shape.columns)
    frame = decode_frame(path)
    if frame.shape != (shape.rows, shape.columns):
        raise PixelError(f"codestream holds {frame.shape}, the header says {(shape.rows, shape.columns)}")
    return np.ascontiguousarray(frame, dtype=np.uint16)


_NOT_BY_GDCM = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
"""JPEG-LS: pydicom would use GDCM, which aborts the process, or crops, where header and codestream differ in size."""

_SECOND_CHANCE = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
"""JPEG of 12 bits, and in files of mixed encoding: pydicom's plug-ins leave these out."""


def decode_frame(path: Path) -> NDArray[Any]:
    """Decode the first frame of an image, without colour conversion. Raises PixelError.

    What header and codestream say of its size is looked at before anything is decoded.
    """
    from pydicom.pixels.utils import pixel_array

    with opened(path) as file:
        syntax = str(file.transfer_syntax)
        codestream = next(checked_frames(file), b"") if file.layout.encapsulated else b""
    with quiet():
        try:
            if syntax in _NOT_BY_GDCM or syntax in JPEG_XL:
                return _decode_with_imagecodecs(path, codestream)
            return pixel_array(path, index=0, raw=True)
        except Exception as error:  # noqa: BLE001 - decoders raise many kinds on hostile codestreams
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            failure = PixelError(f"codestream cannot be decoded: {reason}")
        if syntax not in _SECOND_CHANCE:
            raise failure
        try:
            return _decode_with_imagecodecs(path, codestream)
        except Exception as error:
            raise failure from error


def checked_frames(file: DataSetFile) -> Iterator[bytes]:
    """The codestreams of an encapsulated image, one by one, none of which announces more than is decoded here.

    They are found as pydicom finds them. Raises PixelError.
    """
    header = file.outline()
    shape = PixelShape.of(header)
    shape.check()
    try:
        offsets = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
        frames = generate_frames(
            bytes(file.native_value()),
            number_of_frames=shape.frames,
            extended_offsets=(offsets[0], offsets[1]) if offsets[0] and offsets[1] else None,
        )
        for frame in frames:
            if file.transfer_syntax == RLELossless:
                _check_rle(frame, shape)
            else:
                check_codestream(frame)
            yield frame
    except PixelError:
        raise
    except Exception as error:
        raise PixelError(f"frames cannot be found: {str(error) or type(error).__name__}") from error


def check_frames(path: Path) -> None:
    """Raises PixelError where a frame of an encapsulated image is more than is decoded here."""
    with opened(path) as file:
        for _ in checked_frames(file):
            pass


def _check_rle(frame: bytes, shape: PixelShape) -> None:
    """PackBits announces nothing: a codestream twice as long as its pixels holds more than these (PS3.5 G.3.1)."""
    most = 2 * shape.native_bytes // shape.frames + 64 + 2 * 15
    if len(frame) > most:
        raise TooManyPixels(f"RLE of {len(frame)} bytes is longer than {most}, which its pixels can need")


def _decode_with_imagecodecs(path: Path, codestream: bytes) -> NDArray[Any]:
    import imagecodecs

    with opened(path) as file:
        shape = PixelShape.of(file.outline())
        syntax = str(file.transfer_syntax)
    decoder = imagecodecs.jpegls_decode if syntax in _NOT_BY_GDCM else imagecodecs.jpeg_decode
    frame = np.asarray(imagecodecs.jpegxl_decode(codestream) if syntax in JPEG_XL else decoder(codestream))
    if frame.shape[:2] != (shape.rows, shape.columns):
        raise PixelError(f"codestream holds {frame.shape[:2]}, the header says {(shape.rows, shape.columns)}")
    return frame


def pixel_digest(pixels: NDArray[np.uint16]) -> str:
    """SHA-256, hex, of the pixels as little-endian uint16 in row order."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype="<u2").data).hexdigest()


def transcode(source: Path, target: Path, syntax: UID) -> None:
    """Write ``source`` to ``target`` in another transfer syntax: native little endian, or one of ``encapsulate``.

    Raises PixelError where the pixels cannot be decoded or encoded, Unparseable where an element cannot be written.
    """
    with quiet():
        try:
            dataset = _with_pixels(source)
            if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
                check_frames(source)
                _decompress(dataset, source)
            elif not dataset.file_meta.TransferSyntaxUID.is_little_endian:
                _swap_to_little_endian(dataset)
            if syntax.is_encapsulated:
                encapsulated(dataset, str(syntax))
            body = encode(dataset, syntax)
            meta = file_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax)
        except PixelError:
            raise
        except Exception as error:
            raise Unparseable(f"data set cannot be encoded in {syntax.name}: {error}") from error
        with target.open("wb") as out:
            write_preamble(out, meta)
            out.write(body)


def _with_pixels(path: Path) -> Dataset:
    """The whole data set of a file, and its file meta information as far as decoding needs it."""
    with opened(path) as file:
        dataset, layout = file.header(), file.layout
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = file.transfer_syntax
        if layout.has_pixels:
            order = "<HH" if file.transfer_syntax.is_little_endian else ">HH"
            group, element = struct.unpack_from(order, file.data, layout.pixel_start)
            implicit = "OB" if layout.encapsulated else _IMPLICIT_VRS[element]  # PS3.5 A.1
            value = bytes(file.native_value())
            pixels = DataElement(group << 16 | element, layout.pixel_vr or implicit, value, already_converted=True)
            pixels.is_undefined_length = layout.encapsulated
            dataset[pixels.tag] = pixels
    return dataset


_IMPLICIT_VRS = {0x0008: "OF", 0x0009: "OD", 0x0010: "OW"}
"""The VRs of pixel data in implicit VR, by element number."""


def _decompress(dataset: Dataset, source: Path) -> None:
    """Native pixels in place of encapsulated ones, with the Photometric Interpretation that they have then.

    Raises PixelError.
    """
    if dataset.file_meta.TransferSyntaxUID in JPEG_XL:
        frames = decoded_jpeg_xl(dataset.PixelData, PixelShape.of(dataset).frames)
        dataset.add_new(0x7FE00010, "OW", b"".join(frame.astype(f"<u{frame.itemsize}").tobytes() for frame in frames))
        if PixelShape.of(dataset).samples == 3:  # the decoder gives them so, whatever the codestream had
            dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
        return
    try:
        dataset.decompress(as_rgb=False, generate_instance_uid=False)
        shape = PixelShape.of(dataset)
        if shape.photometric == "YBR_FULL_422" and len(dataset.PixelData) >= shape.native_bytes * 3 // 2:
            dataset.PhotometricInterpretation = "YBR_FULL"  # the decoder has doubled the chroma (PS3.3 C.7.6.3.1.2)
    except Exception as error:
        shape = PixelShape.of(dataset)
        if (shape.samples, shape.frames, shape.bits_allocated) != (1, 1, 16):
            raise PixelError(f"codestream cannot be decoded: {error}") from error
        pixels = integer_pixels(source)  # decodes what pydicom leaves out
        dataset.add_new(0x7FE00010, "OW", pixels.astype("<u2").tobytes())


def _swap_to_little_endian(dataset: Dataset) -> None:
    """Pixels are words in the data set's byte order (PS3.5 section 7.3); ``encode`` turns all that is as received."""
    widths = {"OW": 2, "OF": 4, "OD": 8}
    for tag in (0x7FE00008, 0x7FE00009, 0x7FE00010):
        width = widths.get(dataset[tag].VR) if tag in dataset else None
        if width and len(dataset[tag].value) % width == 0:
            value = np.frombuffer(dataset[tag].value, f">u{width}")
            dataset[tag].value = value.astype(f"<u{width}").tobytes()
