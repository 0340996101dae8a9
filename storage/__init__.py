"""Objects and index of the archive, without network or torch models. Nothing is imported from ``node``."""
