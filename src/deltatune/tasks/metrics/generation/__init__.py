"""Scores of written text with one or more references, as papers report them."""

from deltatune.tasks.metrics.generation.generation_metrics import ALL, TEXT_LOWER, text_tallies
from deltatune.tasks.metrics.generation.tokenizers import guess_characters

__all__ = ["ALL", "TEXT_LOWER", "guess_characters", "text_tallies"]
