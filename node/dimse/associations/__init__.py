"""Associations, accepted and requested."""
