"""Backup and restore of an archive."""
