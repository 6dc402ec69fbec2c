"""Growing instruction data from seed tasks: Self-Instruct, and Alpaca's simpler form of it."""

from deltatune.prompting.self_instruct.generate_instructions import Step, grow
from deltatune.prompting.self_instruct.self_instruct_settings import Growth

__all__ = ["Growth", "Step", "grow"]
