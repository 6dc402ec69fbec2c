"""Which way a metric goes and how far: all that a report has to know of it. Nothing here imports torch."""

LOWER_IS_BETTER = frozenset({"mse", "loss", "perplexity", "bits_per_char", "bits_per_byte", "ter"})
"""As in `tasks.metrics`."""

SIGNED = frozenset({"matthews", "pearson", "spearman"})
UNBOUNDED = LOWER_IS_BETTER | {"nist"}


def bounds(metric: str) -> tuple[float, float]:
    """The least and the largest value a metric can take."""
    if metric == "cider":
        return 0.0, 10.0
    low = -1.0 if metric in SIGNED else 0.0
    return low, float("inf") if metric in UNBOUNDED else 1.0
