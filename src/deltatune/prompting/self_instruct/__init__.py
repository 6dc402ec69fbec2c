"""Growing instruction data from seed tasks: Self-Instruct, and Alpaca's simpler form of it."""

from deltatune.prompting.self_instruct.generation_loop import Progress, generate_instructions
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct

__all__ = ["SelfInstruct", "Progress", "self-instruct"]
