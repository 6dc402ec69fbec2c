"""One file, or one folder, to rows: a module a format."""
