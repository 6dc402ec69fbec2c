"""Models that write: a local one, or a server."""
