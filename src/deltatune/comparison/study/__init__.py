"""Studies: the same comparison over data sets, models, numbers of rows, budgets or shots, with one report.

The public names are listed once, in `__init__.pyi`, and imported when first used: the command line names the data sets
of a study before torch is imported.
"""

from deltatune.core.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, __path__[0])


def __dir__() -> list[str]:
    return __all__
