"""Benchmark: a bundle and its alternatives, measured in one run on one machine."""
