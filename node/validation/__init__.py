"""Tests whether a classifier performs as well on reconstructions as on originals."""
