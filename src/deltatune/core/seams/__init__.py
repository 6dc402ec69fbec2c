"""The places where adapters enter a forward pass: module hooks, attention, the embedding, positions, weights."""
