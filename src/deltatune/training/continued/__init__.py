"""Continued training: an adapter that was trained before goes on with new data."""
