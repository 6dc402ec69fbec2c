"""HF PEFT's folders, both ways: a file a family of methods, each with what it writes, what it reads and what it cannot.

`obstacles` says before training why a method would not be readable by PEFT.
"""

from deltatune.store.peft.peft_folder import knows, left_out, load, obstacles, save

__all__ = ["knows", "left_out", "load", "obstacles", "save"]
