"""Figures for Prometheus: what is timed while it happens, and what the index is asked when somebody scrapes."""
