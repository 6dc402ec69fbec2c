"""HF PEFT's folders, both ways: a file a family of methods, each with what it writes, what it reads and what it cannot.

`obstacles` says before training why a method would not be readable by PEFT.
"""

from deltatune.store.peft.families import left_out, obstacles
from deltatune.store.peft.reading import knows, load
from deltatune.store.peft.writing import save

__all__ = ["knows", "left_out", "load", "obstacles", "save"]
