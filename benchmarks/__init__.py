"""Benchmarks: ratios of medians within one process, `python -m benchmarks.step`. See README.md."""
