"""Workarounds for pynetdicom, each with what it answers."""
