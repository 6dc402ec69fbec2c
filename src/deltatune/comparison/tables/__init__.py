"""Tables of papers: recipes of comparisons and other experiments, with published figures beside those measured."""

from deltatune.core.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, __path__[0])


def __dir__() -> list[str]:
    return __all__
