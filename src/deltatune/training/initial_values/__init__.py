"""Initial values of LoRA from data, or from what a quantised base has lost."""
