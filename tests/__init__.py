"""Tests: one file per unit, and journeys over real associations with real peers."""
