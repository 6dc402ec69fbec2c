"""Task arithmetic: sums of trained adapters."""
