"""Executors: where the works of a comparison run."""
