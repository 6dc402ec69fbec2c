"""Methods that train the base's own weights, in full or within a subspace."""
