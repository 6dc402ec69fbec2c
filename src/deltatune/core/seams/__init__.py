"""Seams: where adapters enter a forward pass (module hooks, attention, embedding, positions, weights)."""
