"""The training loop: its batches, its checkpoints, and what it says when nothing is learned, or memory is used up."""
