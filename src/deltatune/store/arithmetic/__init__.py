"""Task arithmetic: weighted sums of trained adapters, TIES and DARE."""
