"""Growing instruction data from seed tasks: Self-Instruct, and Alpaca's simpler form of it."""

from deltatune.prompting.growing.run import Step, grow
from deltatune.prompting.growing.settings import Growth

__all__ = ["Growth", "Step", "grow"]
