"""Measures reconstructions against their original, and decides whether they pass the gate."""
