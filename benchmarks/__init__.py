"""Benchmarks: ratios in one run against what a user would pick instead. Not part of the tests."""
