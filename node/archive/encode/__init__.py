"""Encoding, verification and repair of what is held."""
