"""Adapt a frozen pretrained transformer by training few parameters, and find out which method is best.

`Host` plugs adapters into a model; `LoRA`, `Bottleneck`, `Prefix`, ... are the methods; `parse` reads them from text.
The public names are listed once, in `__init__.pyi`, and imported when first used, so that the command line starts fast.
"""

from deltatune.core.lazy_exports import lazy_exports

__version__ = "0.1.0"

_names, __getattr__ = lazy_exports(__name__, __path__[0])

__all__ = sorted([*_names, "__version__"])


def __dir__() -> list[str]:
    return __all__
