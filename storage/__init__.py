"""Bytes and index of the archive: no network, no torch models, nothing imported from ``node``."""
