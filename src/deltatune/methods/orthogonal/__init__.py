"""Orthogonal fine-tuning: a matrix's input is rotated."""
