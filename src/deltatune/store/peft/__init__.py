"""HF PEFT's adapter folders, written and read: a file per family of methods, with what PEFT cannot hold.

`peft_obstacles` says before training why PEFT could not read an adapter of a method. LoRAs for diffusers' pipelines,
which are PEFT's tensors in one file, are read too.
"""

from deltatune.store.peft.peft_folder import left_out, peft_obstacles, save
from deltatune.store.peft.places import knows, load, read_stored

__all__ = ["knows", "left_out", "load", "peft_obstacles", "read_stored", "save"]
