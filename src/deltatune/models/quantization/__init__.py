"""Models whose linear maps are stored in 4 or 8 bits: made from a plain model, loaded, and made plain again."""
