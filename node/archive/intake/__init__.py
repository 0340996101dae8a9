"""Receiving of images: ingest, eligibility, marked regions, quarantine."""
