"""Benchmarks: ratios of medians within one process, `python -m benchmarks.step` (decode, attach). See README.md."""
