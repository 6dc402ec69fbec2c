"""Laws of generation: with a cache, padding or beams, each row is generated as it is alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.route import RouteSpec
from deltatune.testing.fixtures import OTHER, Batch, assert_close, attach, make_host, row_alone
from deltatune.testing.tiny_models import ENCODERS, RIGHT_PADDED, VOCABULARY, Kind, inputs

TOKENS = 4
"""New tokens per row; the end token is suppressed until then."""


def cached_equals_uncached(method: Method, kind: Kind) -> None:
    """Law 8: generation with a key-value cache gives the same logits at every step as without."""
    if kind in ENCODERS:
        return
    host, batch = _host(method, kind), prompt(kind)
    host.use("a")
    assert_close(
        step_logits(host, batch, use_cache=True), step_logits(host, batch, use_cache=False), "with cache and without"
    )


def padding_changes_nothing(method: Method, kind: Kind) -> None:
    """Law 8: a row generated in a left-padded batch gives the same logits as alone."""
    if kind in ENCODERS:
        return
    host, batch = _host(method, kind), prompt(kind)
    host.use("a")
    together = step_logits(host, batch)
    for row in range(len(batch["input_ids"])):
        assert_close(step_logits(host, row_alone(batch, row))[0], together[row], f"row {row}, alone and left-padded")


def rows_keep_their_routes(method: Method, kind: Kind) -> None:
    """Laws 6 and 8: in greedy and beam search over rows of different adapters, each row equals itself alone."""
    if kind in ENCODERS:
        return
    host, batch = _host(method, kind), prompt(kind)
    if not host.adapters["a"].mixes:
        return
    attach(host, "other", OTHER, seed=7)
    route: list[RouteSpec] = ["a", None, {"a": 0.6, "other": 0.5}]
    host.use(route)  # type: ignore[arg-type]
    together, beams = step_logits(host, batch), _sequences(host, batch, num_beams=3)
    for row, entry in enumerate(route):
        host.use(entry)
        alone = row_alone(batch, row)
        assert_close(step_logits(host, alone)[0], together[row], f"row {row}, routed {entry!r}, alone and with others")
        new, wanted = beams[row, -TOKENS:].tolist(), _sequences(host, alone, num_beams=3)[0, -TOKENS:].tolist()
        if new != wanted:
            raise AssertionError(f"beam search, row {row}, routed {entry!r}: {new} with others, {wanted} alone")


def _host(method: Method, kind: Kind) -> Host:
    host = make_host(kind, "lm")
    attach(host, "a", method)
    return host


def prompt(kind: Kind) -> dict[str, Tensor]:
    """Prompts of three lengths, padded as generation needs them."""
    batch = inputs(kind, rows=3, length=6, padding="right" if kind in RIGHT_PADDED else "left")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _generate(host: Host, batch: Batch, **options: Any) -> Any:
    return host.generate(**batch, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, **options)


def step_logits(host: Host, batch: Batch, **options: Any) -> Tensor:
    """Logits of every step (B, TOKENS, V)."""
    out = _generate(host, batch, output_logits=True, return_dict_in_generate=True, **options)
    return torch.stack(out.logits, dim=1)[..., :VOCABULARY]


def _sequences(host: Host, batch: Batch, **options: Any) -> Tensor:
    sequences: Tensor = _generate(host, batch, **options)
    return sequences
