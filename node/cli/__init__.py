"""The command line: each command parses its options, calls the archive, and prints. Torch is not imported here."""
