"""Quantised weights: codes, blocks, a frozen linear map that holds them, and how those of other packages are read."""
