"""Every prompting method; importing this module registers them under the entry point group `deltatune.prompting`."""

from deltatune.prompting.chain_of_thought import ChainOfThought
from deltatune.prompting.zero_shot import Cloze, ZeroShot

__all__ = ["ChainOfThought", "Cloze", "ZeroShot"]
