"""Figures for Prometheus: durations, timed as work is done, and counts, read from the index when they are scraped."""
