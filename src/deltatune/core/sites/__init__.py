"""Where a transformer can be read and changed: its sites, found without per-model tables."""
