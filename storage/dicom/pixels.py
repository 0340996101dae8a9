"""Pixels as integers: their description in the header, its consistency with the bytes, and decoding.

A peer's bytes are decoded only in worker processes (node/workers/worker.py), because a decoder written in C may end
its process on a hostile codestream.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from storage.dicom.codestreams import (
    check_codestream,
    check_pixels,
    codestreams_begun,
    fragments_of,
    is_transformed_rgb,
)
from storage.dicom.dicomfile import DataSetFile, file_meta, opened, write_preamble
from storage.dicom.encapsulate import JPEG_XL, decoded_jpeg_xl, describe_as_native, encapsulated
from storage.dicom.inflating import DEFLATED, deflated
from storage.dicom.unused_bits import decoder_options, sign_extended
from storage.dicom.writing import encode, swapped
from storage.errors import PixelError, TooManyPixels, Unparseable

_MAX_BYTES = 1 << 62
"""Upper limit of ``native_bytes``, because the index stores numbers of 64 bits."""


@dataclass(frozen=True)
class PixelShape:
    """Attributes of the Image Pixel module (PS3.3 C.7.6.3); 0 or empty if absent or unreadable."""

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
        return min((bits + 7) // 8, _MAX_BYTES)

    def check(self) -> None:
        """Raises TooManyPixels if a frame has more pixels than limits.pixels."""
        check_pixels("header says", self.rows, self.columns, self.samples)


def native_pixel_warning(file: DataSetFile, shape: PixelShape) -> str:
    """The fault of the pixels that can be found without a decoder; empty if there is none.

    Bits beyond High Bit are not a fault, since old devices have overlays there (PS3.5-2004 8.1.2); see STRAY_BITS.
    """
    layout = file.layout
    if not layout.has_pixels:
        return "an image with no pixel data" if _promises_pixels(file, shape) else ""
    if layout.truncated:
        return "pixel data ends before its announced length"
    if layout.repeated:
        return "pixel data occurs more than once"
    if not (shape.rows and shape.columns and shape.bits_allocated):
        return "pixel data without rows, columns or bits allocated"
    if layout.encapsulated:
        native = not file.transfer_syntax.is_encapsulated
        return "encapsulated pixel data in a transfer syntax for native pixel data" if native else ""
    if file.transfer_syntax.is_compressed and file.transfer_syntax != DeflatedExplicitVRLittleEndian:
        return "native pixel data in a transfer syntax for encapsulated pixel data"
    actual, expected = layout.value_end - layout.value_start, shape.native_bytes
    if actual < expected:
        return f"pixel data is short: {actual} bytes for {expected}"
    if actual > expected + 1:
        return f"pixel data is too long: {actual} bytes for {expected}"
    return ""


def counted_bytes(file: DataSetFile, shape: PixelShape, warning: str, *, decodable: bool) -> int:
    """Uncompressed bytes of the pixels that the file holds, whatever number of frames its header states.

    Each frame has at least one fragment. For encapsulated pixels that cannot be decoded, their encoded size is used.
    ``warning``: the result of ``native_pixel_warning``. ``decodable``: whether there is a decoder for them.
    """
    layout = file.layout
    size = layout.value_end - layout.value_start
    if not layout.encapsulated or warning or not decodable:
        return min(shape.native_bytes, size)
    frames = min(shape.frames, max(len(fragments_of(file.native_value())), 1))
    return shape.native_bytes // shape.frames * frames


def _promises_pixels(file: DataSetFile, shape: PixelShape) -> bool:
    """Whether the header describes pixels and has no Pixel Data Provider URL (0028,7FE0)."""
    return bool(shape.rows and shape.columns and shape.bits_stored) and 0x00287FE0 not in file.outline()


def integer_pixels(path: Path) -> NDArray[np.uint16]:
    """The stored values of a single-frame, 16-bit, monochrome image: uint16, shape (rows, columns), no rescale.

    Raises PixelError if pixels are absent, of another kind, inconsistent with the header, or undecodable.
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


_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
"""Transfer syntaxes of JPEG-LS. If header and codestream differ in size, GDCM, which pydicom would use, aborts the
process or crops the image."""

_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
"""Transfer syntaxes of lossy JPEG. pydicom's plug-ins fail on some 12-bit files and on files of mixed encoding."""


def decode_frame(path: Path) -> NDArray[Any]:
    """Decode the first frame of an image, without colour conversion. Raises PixelError.

    The sizes in header and codestream are checked before anything is decoded.
    """
    from pydicom.pixels.utils import pixel_array

    with opened(path) as file:
        syntax, shape = str(file.transfer_syntax), PixelShape.of(file.outline())
        codestream = next(checked_frames(file), b"") if file.layout.encapsulated else b""
    try:
        if syntax in _JPEG_LS or syntax in JPEG_XL:
            return _decode_with_imagecodecs(codestream, syntax, shape)
        frame = pixel_array(path, index=0, raw=True, **decoder_options(syntax, shape.bits_allocated))
        return sign_extended(frame, syntax, shape.bits_stored, shape.high_bit)
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds on hostile codestreams
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        failure = PixelError(f"codestream cannot be decoded: {reason}")
    if syntax not in _JPEG:
        raise failure
    try:
        return _decode_with_imagecodecs(codestream, syntax, shape)
    except Exception as error:
        raise failure from error


def checked_frames(file: DataSetFile) -> Iterator[bytes]:
    """The codestreams of an encapsulated image, as pydicom finds them. Raises PixelError.

    Before a codestream is yielded, the size in its header is checked.
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
                _check_size(frame, shape, str(file.transfer_syntax))
            yield frame
    except PixelError:
        raise
    except Exception as error:
        raise PixelError(f"frames cannot be found: {str(error) or type(error).__name__}") from error


def check_frames(path: Path) -> tuple[int, int]:
    """The number of frames of an image, and the number that its header states. Native frames are not counted.

    Raises PixelError if a frame has more pixels than limits.pixels, or no header of its own.
    """
    with opened(path) as file:
        stated = PixelShape.of(file.outline()).frames
        if not file.layout.encapsulated:
            return stated, stated
        found = sum(1 for _ in checked_frames(file))
        begun = codestreams_begun(file.native_value(), file.transfer_syntax)
        return (max(found, begun) if begun > stated else found), stated


def _check_size(frame: bytes, shape: PixelShape, syntax: str) -> None:
    """Raises TooManyPixels, and PixelError if a codestream is of another size than the header says.

    pydicom would give its values the header's shape, and the picture would be scrambled.
    """
    rows, columns, _ = check_codestream(frame)
    if syntax in JPEG_XL or not rows:  # a JPEG XL decoder may rotate the image; JPEG may state its rows later
        return
    _check_shape((rows, columns), shape)


def _check_shape(found: tuple[int, ...], shape: PixelShape) -> None:
    if found[:2] != (shape.rows, shape.columns):
        raise PixelError(f"codestream holds {found}, the header says {(shape.rows, shape.columns)}")


def _check_rle(frame: bytes, shape: PixelShape) -> None:
    """Raises TooManyPixels if RLE is longer than twice its pixels, the maximum of PackBits (PS3.5 G.3.1).

    Raises PixelError if a segment has more rows than the header says, which decoders drop silently.
    """
    limit = 2 * shape.native_bytes // shape.frames + 64 + 2 * 15
    if len(frame) > limit:
        raise TooManyPixels(f"RLE has {len(frame)} bytes; its pixels need at most {limit}")
    count, *offsets = struct.unpack_from("<16I", frame)
    if max(offsets[:count], default=0) > len(frame):
        return  # the decoder says what is wrong
    for low, high in pairwise([*offsets[:count], len(frame)]):
        segment = frame[low:high].rstrip(b"\0") + b"\0"  # zero bytes may be padding
        try:
            imagecodecs.packbits_decode(segment, out=shape.rows * shape.columns + max(shape.columns - 1, 1))
        except RuntimeError as error:
            if "TOO_SMALL" in str(error):
                raise PixelError(f"RLE holds more than the {shape.rows} rows that the header says") from error


def _decode_with_imagecodecs(codestream: bytes, syntax: str, shape: PixelShape) -> NDArray[Any]:
    decoder = imagecodecs.jpegls_decode if syntax in _JPEG_LS else imagecodecs.jpeg_decode
    frame = np.asarray(imagecodecs.jpegxl_decode(codestream) if syntax in JPEG_XL else decoder(codestream))
    _check_shape(frame.shape, shape)
    return frame


def pixel_digest(pixels: NDArray[np.uint16]) -> str:
    """SHA-256, hex, of the pixels as little-endian uint16 in row order."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype="<u2").data).hexdigest()


def transcode(source: Path, target: Path, syntax: UID) -> None:
    """Write ``source`` to ``target`` in another transfer syntax: native little endian, or one of ``encapsulate``.

    If it has that transfer syntax already, its pixels are copied, and odd lengths become even. Raises PixelError if the
    pixels cannot be decoded or encoded, Unparseable if an element cannot be written.
    """
    try:
        dataset = _with_pixels(source)
        changes = syntax != (received := dataset.file_meta.TransferSyntaxUID)
        if changes and "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            check_frames(source)
            _decompress(dataset, source)
            describe_as_native(dataset, str(received))
        elif changes and not received.is_little_endian:
            _swap_to_little_endian(dataset)
        if changes and syntax.is_encapsulated:
            encapsulated(dataset, str(syntax))
        body = encode(dataset, syntax)
        meta = file_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax)
    except PixelError:
        raise
    except Exception as error:
        raise Unparseable(f"data set cannot be encoded in {syntax.name}: {error}") from error
    with target.open("wb") as out:
        write_preamble(out, meta)
        out.writelines(deflated([body]) if syntax in DEFLATED else [body])


def _with_pixels(path: Path) -> Dataset:
    """The data set of a file with its pixels, and the file meta information that decoding needs."""
    with opened(path) as file:
        dataset, layout = file.header(), file.layout
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = file.transfer_syntax
        if layout.has_pixels:
            order = "<HH" if file.transfer_syntax.is_little_endian else ">HH"
            group, element = struct.unpack_from(order, file.data, layout.pixel_start)
            implicit = "OB" if layout.encapsulated else _IMPLICIT_VRS[element]
            value = bytes(file.native_value())
            pixels = DataElement(group << 16 | element, layout.pixel_vr or implicit, value, already_converted=True)
            pixels.is_undefined_length = layout.encapsulated
            dataset[pixels.tag] = pixels
    return dataset


_IMPLICIT_VRS = {0x0008: "OF", 0x0009: "OD", 0x0010: "OW"}
"""VRs of pixel data in implicit VR, by element number (PS3.5 A.1)."""


def _decompress(dataset: Dataset, source: Path) -> None:
    """Replace encapsulated pixels by native ones, and adjust Photometric Interpretation. Raises PixelError."""
    if dataset.file_meta.TransferSyntaxUID in JPEG_XL:
        shape = PixelShape.of(dataset)
        frames = decoded_jpeg_xl(dataset.PixelData, shape.frames)
        for frame in frames:
            _check_shape(frame.shape, shape)
        dataset.add_new(0x7FE00010, "OW", b"".join(frame.astype(f"<u{frame.itemsize}").tobytes() for frame in frames))
        if shape.samples == 3:  # the decoder returns RGB for every colour space
            dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
        return
    stated, shape = dataset.get_item("NumberOfFrames", keep_deferred=True), PixelShape.of(dataset)
    dataset.add_new(0x00280008, "IS", shape.frames)  # pydicom fails on values such as -1
    try:
        transformed = shape.samples == 3 and _is_transformed_rgb(source)
        syntax, bits = dataset.file_meta.TransferSyntaxUID, shape.bits_allocated
        dataset.decompress(as_rgb=False, generate_instance_uid=False, **decoder_options(syntax, bits))
        _cut_to(dataset, shape.frames)
        if shape.signed and bits in (8, 16):
            values = np.frombuffer(dataset.PixelData, f"<i{bits // 8}")
            dataset["PixelData"].value = sign_extended(values, syntax, shape.bits_stored, shape.high_bit).tobytes()
        if transformed:  # pydicom keeps a wrong Photometric Interpretation
            dataset.PhotometricInterpretation = "RGB"
        shape = PixelShape.of(dataset)
        if shape.photometric == "YBR_FULL_422" and len(dataset.PixelData) >= shape.native_bytes * 3 // 2:
            dataset.PhotometricInterpretation = "YBR_FULL"  # the decoder upsampled the chroma (PS3.3 C.7.6.3.1.2)
    except Exception as error:
        shape = PixelShape.of(dataset)
        if (shape.samples, shape.frames, shape.bits_allocated) != (1, 1, 16):
            raise PixelError(f"codestream cannot be decoded: {error}") from error
        pixels = integer_pixels(source)  # decodes JPEG that pydicom cannot
        dataset.add_new(0x7FE00010, "OW", pixels.astype("<u2").tobytes())
    finally:
        del dataset.NumberOfFrames
        if stated is not None:
            dataset[stated.tag] = stated


def _cut_to(dataset: Dataset, frames: int) -> None:
    """Leave out frames beyond the number that the header states, which pydicom decodes too."""
    found = int(dataset.NumberOfFrames)
    if found > frames:
        value = dataset.PixelData[: len(dataset.PixelData) // found * frames]
        dataset.PixelData = value + b"\0" * (len(value) % 2)


def _is_transformed_rgb(source: Path) -> bool:
    """Whether the first codestream of a file is decoded to RGB, whatever its header says."""
    with opened(source) as file:
        return is_transformed_rgb(next(checked_frames(file), b""))


def _swap_to_little_endian(dataset: Dataset) -> None:
    """Reverse the byte order of pixels (PS3.5 section 7.3). ``encode`` does this for all received elements."""
    for tag in (0x7FE00008, 0x7FE00009, 0x7FE00010):
        if tag in dataset and dataset[tag].VR in ("OW", "OF", "OD"):
            dataset[tag].value = swapped(dataset[tag].value, dataset[tag].VR)
