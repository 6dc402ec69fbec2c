"""Rows of a file to the rows of one task."""
