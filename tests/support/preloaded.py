"""Loads the code and the libraries of workers once, in the process that tests fork their workers from
(tests/support/faster.py)."""

import importlib
import os

import imagecodecs
import torch  # noqa: F401

import node.codec.encode.encode_request
import node.upscalers.bicubic
import node.upscalers.numerics
import node.workers.worker  # noqa: F401
from tests.support.faster import measure_fsim_of_two_tiles

for name in ("scipy.linalg", "scipy.ndimage", "scipy.spatial", "skimage.filters"):  # imported in functions
    importlib.import_module(name)
for coder in ("avif", "jpeg2k", "jpeg8", "jpegls", "jpegxl", "zlib"):
    getattr(imagecodecs, f"{coder}_decode")  # loads the library

# A worker is nicer than its node. On a busy machine it would get a fourteenth of the processor time of other programs,
# and tests would wait for minutes.
os.nice = lambda increment: 0

measure_fsim_of_two_tiles()
