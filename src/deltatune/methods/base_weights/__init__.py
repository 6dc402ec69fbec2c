"""Methods that train the base's own weights, or move them in a subspace."""
