"""HF PEFT's adapter folders, written and read: a file per family of methods, with what PEFT cannot hold.

`peft_obstacles` says before training why PEFT could not read an adapter of a method.
"""

from deltatune.store.peft.peft_folder import knows, left_out, load, peft_obstacles, read_stored, save

__all__ = ["knows", "left_out", "load", "peft_obstacles", "read_stored", "save"]
