"""Tasks: rows to tokens, logits to a loss, logits to answers and scores.

The public names are listed once, in `__init__.pyi`, and imported when first used, so that reports can read facts about
metrics without importing torch.
"""

from deltatune.core.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, __path__[0])
