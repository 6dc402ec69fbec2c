"""Limits of the engine: how much runs, waits and stays in memory at once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.serving.serving_errors import RequestTooLong
from deltatune.tasks.tokenization import longest_input
from deltatune.training.scaling.feature_cache import free_memory


@dataclass(frozen=True)
class EngineLimits:
    """What the engine holds at once; some fields are 0 where the machine decides."""

    rows: int = 64
    """Rows that generate at once."""
    pass_tokens: int = 0
    """Tokens of prompts, or of rows to classify, that one pass reads; longer prompts are read in pieces, so that rows
    which generate are not held up. A row that must be read at once may have more. 0: 512 on a CPU, 2048 elsewhere."""
    queue: int = 512
    """Requests that wait; more are refused with QueueFull."""
    cache_bytes: int = 0
    """Bytes of the keys and values of running rows; 0: a quarter of the free memory."""
    prompt_cache_bytes: int = 0
    """Bytes of the keys and values of prompts that are kept for later ones; 0: an eighth of the free memory."""
    prompt_cache: bool = True
    """Whether keys and values of prompts are kept."""
    request_rows: int = 4096
    """Rows of one RowsRequest."""
    request_tokens: int = 8192
    """Tokens of a prompt and its answer, or of a row, on models that have no limit of their own, as T5 has none."""

    def __post_init__(self) -> None:
        counts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "prompt_cache"}
        shares = ("cache_bytes", "prompt_cache_bytes", "pass_tokens")
        raise_all([
            f"{name} must be a whole number of at least {int(name not in shares)}, not {value!r}"
            for name, value in counts.items()
            if isinstance(value, bool) or not isinstance(value, int) or value < (name not in shares)
        ])  # fmt: skip

    def of_machine(self, device: torch.device) -> EngineLimits:
        """The same limits, with values for a device in place of 0."""
        free = free_memory(device)
        return replace(
            self,
            pass_tokens=self.pass_tokens or (512 if device.type == "cpu" else 2048),
            cache_bytes=self.cache_bytes or free // 4,
            prompt_cache_bytes=self.prompt_cache_bytes or free // 8,
        )


def check_positions(host: Host, prompt: int, new: int, taken: int) -> None:
    """Raise RequestTooLong where a prompt and its answer have more tokens than the model has positions."""
    positions = longest_input(host.model)
    apart = host.sites.facts.encoder_decoder  # the encoder reads the prompt, the decoder the answer
    longest = max(prompt + taken, new + 1) if apart else prompt + taken + new
    if positions is not None and longest > positions:
        adapter = f", the adapter takes {taken}" if taken else ""
        raise RequestTooLong(
            f"the prompt has {prompt} tokens and {new} may be generated{adapter}; this model's maximum context length "
            f"is {positions} tokens: shorten the prompt or lower max_tokens"
        )
