"""The prompt cache: keys and values of prompts, kept for later prompts that begin with the same tokens.

They are kept in blocks, each under a hash of its tokens, of all blocks before it, and of what they were computed with,
as vLLM does it: https://docs.vllm.ai/en/latest/design/prefix_caching.html
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltatune.serving.engine.running_cache import States

BLOCK = 16
"""Tokens of a block."""


class _Block(NamedTuple):
    """Keys and values (L, H_kv, BLOCK, K) of a block's tokens in all layers."""

    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class PromptCache:
    """Blocks of prompts, of which those used longest ago go first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        """Prompts of which some tokens were found."""
        self.tokens = 0
        """Tokens that were found."""
        self.age = 0
        """How often all was forgotten: what was begun before is not kept."""
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()

    def find(self, key: str, ids: Sequence[int]) -> tuple[int, States]:
        """How many tokens a prompt has in common with kept ones, its last one left out, and their keys and values."""
        found: list[bytes] = []
        for digest in _digests(key, ids[:-1]):
            if digest not in self._blocks:
                break
            found.append(digest)
        if not found:
            return 0, []
        self._touch(found)
        self.hits += 1
        self.tokens += len(found) * BLOCK
        blocks = [self._blocks[digest] for digest in found]
        keys = torch.cat([block.keys for block in blocks], 2)
        values = torch.cat([block.values for block in blocks], 2)
        return len(found) * BLOCK, list(zip(keys, values, strict=True))

    def keep(self, key: str, ids: Sequence[int], states: States) -> None:
        """Keep the whole blocks of a prompt with the keys and values of its tokens."""
        digests = _digests(key, ids)
        known = next((i for i, digest in enumerate(digests) if digest not in self._blocks), len(digests))
        if not digests or len({(k.shape[0], k.shape[2], v.shape[2]) for k, v in states}) > 1:
            return
        first, last = known * BLOCK, len(digests) * BLOCK
        if known < len(digests):
            keys = torch.stack([k[:, first:last] for k, _ in states])  # (L, H_kv, T, K)
            values = torch.stack([v[:, first:last] for _, v in states])
            for i, digest in enumerate(digests[known:]):
                columns = slice(i * BLOCK, (i + 1) * BLOCK)
                block = _Block(keys[:, :, columns].clone(), values[:, :, columns].clone())
                if digest not in self._blocks:
                    self._blocks[digest] = block
                    self.bytes += block.bytes
        self._touch(digests)
        while self.bytes > self.most_bytes:
            _, block = self._blocks.popitem(last=False)
            self.bytes -= block.bytes

    def clear(self) -> None:
        """Forget all."""
        self._blocks.clear()
        self.bytes, self.age = 0, self.age + 1

    def _touch(self, digests: Sequence[bytes]) -> None:
        """The first block becomes the one used last: without it, those behind it are of no use."""
        for digest in reversed(digests):
            self._blocks.move_to_end(digest)


def _digests(key: str, ids: Sequence[int]) -> list[bytes]:
    """A hash for each whole block of a prompt."""
    digests, before = [], key.encode()
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        tokens = ",".join(map(str, ids[start : start + BLOCK]))
        before = hashlib.blake2b(tokens.encode(), key=hashlib.blake2b(before).digest(), digest_size=16).digest()
        digests.append(before)
    return digests
