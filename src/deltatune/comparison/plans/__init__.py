"""Plans: what a comparison runs, in which sizes, with which rates, seeds and rows."""
