"""Figures for Prometheus: durations, timed during the work, and counts, which a scrape reads from the index."""
