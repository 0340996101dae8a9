"""The commands: each parses its options, calls one function below, and prints. Torch is not imported here."""
