"""DICOM data sets: their elements and pixels, as bytes and as values."""
