"""The laws, by topic."""
