"""The content-addressed store, and the journals and lists that are kept beside it."""
