"""Bottleneck adapters and methods built on them."""
