"""Costs of methods: inference time, memory, sizes."""
