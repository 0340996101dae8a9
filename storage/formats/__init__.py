"""The object formats of the archive, and the coders and operators that they use."""
