"""Several adapters trained together: at each step their batches go through the base in one pass."""
