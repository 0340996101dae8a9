"""A handler for each DIMSE service."""
