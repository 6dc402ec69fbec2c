"""Methods: one file per paper, in folders by family. Every file in them is imported, which registers its methods."""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
