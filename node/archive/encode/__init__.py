"""Encoding of originals, and verification and restoring of renditions."""
