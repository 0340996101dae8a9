"""Encodes images to payloads, and decodes payloads to pixels."""
