"""Access to originals, and how they are packed, kept and removed."""
