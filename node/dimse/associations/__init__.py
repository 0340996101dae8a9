"""Associations that peers open, and those that this node opens."""
