"""One file a paper, in rooms by family. A file put here is found by being here; importing it registers its methods."""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
