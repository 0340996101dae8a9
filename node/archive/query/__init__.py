"""C-FIND queries, from an identifier to its responses."""
