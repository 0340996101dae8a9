"""Benchmarks, most of which compare the archive with an alternative in the same run. They are not part of the tests."""
