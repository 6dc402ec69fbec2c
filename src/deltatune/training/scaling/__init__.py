"""What makes a run fit and fast: several processes, sharding, gradient checkpointing, packing, cached features."""
