"""Originals: access, packing, retention and storage commitment."""
