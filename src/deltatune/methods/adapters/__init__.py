"""Bottleneck adapters and what is made of them."""
