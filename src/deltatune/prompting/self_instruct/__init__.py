"""Self-Instruct: instruction data generated from seed tasks, also in Alpaca's simpler form."""

from deltatune.prompting.self_instruct.generation_loop import GenerationProgress, generate_instructions
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct

__all__ = ["GenerationProgress", "SelfInstruct", "generate_instructions"]
