"""Loads the libraries of workers once, in the process that tests fork their workers from (tests/support/faster.py)."""

import imagecodecs
import torch  # noqa: F401

for coder in ("avif", "jpeg2k", "jpeg8", "jpegls", "jpegxl", "zlib"):
    getattr(imagecodecs, f"{coder}_decode")  # loads the library
