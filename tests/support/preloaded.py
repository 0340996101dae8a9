"""Loads the libraries of workers once, in the process that tests fork their workers from (tests/support/faster.py)."""

import os

import imagecodecs
import torch  # noqa: F401

for coder in ("avif", "jpeg2k", "jpeg8", "jpegls", "jpegxl", "zlib"):
    getattr(imagecodecs, f"{coder}_decode")  # loads the library

# A worker is nicer than its node. On a busy machine it would get a fourteenth of the processor time of other programs,
# and tests would wait for minutes.
os.nice = lambda increment: 0
