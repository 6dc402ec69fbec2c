"""A source of data -> the splits that it has: a file, a folder, a data set of the hub, or the built-in data."""
