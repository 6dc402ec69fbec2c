"""Sites: where a transformer can be read and changed, derived without per-model tables."""
