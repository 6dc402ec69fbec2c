"""Weights that other packages quantised, a file a package: how each is read."""
