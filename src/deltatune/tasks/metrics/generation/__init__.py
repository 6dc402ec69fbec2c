"""Metrics of generated text with one or more references, as papers report them."""

from deltatune.tasks.metrics.generation.generation_metrics import FACTS, METRICS, text_scores
from deltatune.tasks.metrics.generation.tokenizers import guess_characters

__all__ = ["FACTS", "METRICS", "guess_characters", "text_scores"]
