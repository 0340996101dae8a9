"""One handler per DIMSE service."""
