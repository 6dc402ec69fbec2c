"""One file a paper. A file put here is found by being here; importing it registers the methods it defines."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
