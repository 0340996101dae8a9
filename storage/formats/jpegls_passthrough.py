"""Writes a packed original as a JPEG-LS Lossless file from its stored codestreams, without decoding them.

The file equals the output of ``storage.dicom.pixels.transcode`` for the original, byte for byte, because the same
encoder encoded the same integers. All other originals must be unpacked: signed samples, which are packed with bit 15
flipped; values with gaps, which are packed as ranks; 8 bits, which are packed as 16; colour, RLE and big endian.
"""

from __future__ import annotations

import io
from itertools import accumulate, pairwise
from pathlib import Path

from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from storage.dicom.dicomfile import HeaderBytes, data_set_start, file_meta, write_preamble
from storage.dicom.pixels import PixelShape
from storage.dicom.writing import ALL, encode
from storage.errors import PixelError, Unparseable
from storage.formats.container import malformed_is_payload_error, unpack
from storage.formats.packed_original import KIND, MAX_LIGHT_BYTES, PixelCoding, coding_of

_TAG = 0x7FE00010
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_VRS = (b"OW\0\0", b"OB\0\0")
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


def pass_through(packed: Path, target: Path) -> None:
    """Write a packed original to ``target`` in JPEG-LS Lossless, after verifying its checksum.

    Raises PixelError if it must be unpacked instead, PayloadError if it is damaged, and Unparseable.
    """
    if packed.stat().st_size > MAX_LIGHT_BYTES:
        raise PixelError(f"an object of more than {MAX_LIGHT_BYTES} bytes is unpacked by a worker")
    sections = unpack(packed.read_bytes(), KIND)
    if "meta" not in sections or sections.get("levels"):
        raise PixelError("no pixels are packed, or their values are packed as ranks")
    with malformed_is_payload_error("packed original"):
        coding = coding_of(sections["meta"])
        kind = (coding.coder, coding.samples, coding.sample_bytes, coding.big_endian, coding.signed, coding.rle_pads)
        if kind != ("jpegls", 1, 2, False, False, ()) or len(coding.lengths) != coding.frames:
            raise PixelError("only native, unsigned, single-sample pixels of 16 bits are passed through")
        header = _header(sections["head"], sections.get("tail", b""), coding)
    try:
        before, after = (encode(header, JPEGLSLossless, within=part) for part in (range(_TAG), range(_TAG, ALL.stop)))
        meta = file_meta(header.SOPClassUID, header.SOPInstanceUID, JPEGLSLossless)
    except Exception as error:
        raise Unparseable(f"data set cannot be encoded in {JPEGLSLossless.name}: {error}") from error
    pixels = sections["pixels"]
    codestreams = [pixels[low:high] for low, high in pairwise([0, *accumulate(coding.lengths)])]
    with target.open("wb") as out:
        write_preamble(out, meta)
        out.write(before)
        out.write(_PIXEL_DATA + b"OB\0\0\xff\xff\xff\xff")
        out.write(encapsulate(codestreams, has_bot=len(codestreams) > 1))
        out.write(_DELIMITER)
        out.write(after)


def _header(head: bytes, tail: bytes, coding: PixelCoding) -> Dataset:
    """The data set without pixels. ``head`` ends with the header of their element (PS3.5 7.1.2, 7.1.3)."""
    start, syntax = data_set_start(io.BytesIO(head))
    explicit = head[-12:-8] == _PIXEL_DATA and head[-8:-4] in _VRS
    if syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) or not (explicit or head[-8:-4] == _PIXEL_DATA):
        raise PixelError(f"pixels are in another element, or in {syntax.name}")
    if int.from_bytes(head[-4:], "little") != 2 * coding.rows * coding.columns * coding.frames:
        raise PixelError("pixel data is longer than its pixels")
    header = HeaderBytes(str(syntax), head[start : -12 if explicit else -8], tail).dataset()
    shape = PixelShape.of(header)
    stated = (shape.rows, shape.columns, shape.samples, shape.frames, shape.bits_allocated)
    if stated != (coding.rows, coding.columns, 1, coding.frames, 16) or header.get("PixelRepresentation") != 0:
        raise PixelError("the header does not match the packed pixels")
    if "BitsStored" not in header or "ExtendedOffsetTable" in header or "ExtendedOffsetTableLengths" in header:
        raise PixelError("the header has no Bits Stored, or it has an extended offset table")
    return header
