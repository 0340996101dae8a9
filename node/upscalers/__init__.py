"""The upscalers: each turns the decoded base into a full-matrix float image. See ``protocol.py``."""
