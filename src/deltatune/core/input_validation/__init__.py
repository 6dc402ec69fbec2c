"""Validation of input: fields of dataclasses, JSON, files and sizes."""
