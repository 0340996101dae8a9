"""The content-addressed object store, and the journals and manifests beside it."""
