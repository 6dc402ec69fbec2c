"""The law of compiling: an adapter leaves the model one graph. Slow, so it is not among the quick laws."""

from __future__ import annotations

from typing import Any

import torch

from deltatune.core.method import Method
from deltatune.testing.models import Kind, inputs
from deltatune.testing.trying import assert_close, attach, forward, gradients, make_host, outputs, probe_loss


def compiled_equals_eager(method: Method, kind: Kind) -> None:
    """Law 14: `torch.compile(fullgraph=True)` takes the model with the adapter; outputs and gradients are the same."""
    host, batch = make_host(kind), inputs(kind)
    if not all(delta.compiles for _, _, delta in attach(host, "a", method).entries()):
        host.finish_("a")
    wanted = outputs(host, batch)
    torch.compiler.reset()
    # The backend without code generation: what may break is tracing, and no compiler has to be there.
    compiled: Any = torch.compile(host.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(**batch)[0], wanted, "compiled and eager", within=1e-5)
    loss = probe_loss(list(forward(host.model, batch)))
    if not loss.requires_grad:  # a probe of a model without a head trains nothing
        return
    loss.backward()  # type: ignore[no-untyped-call]
    expected = gradients(host, "a")
    probe_loss(list(forward(compiled, batch))).backward()  # type: ignore[no-untyped-call]
    for name, found in gradients(host, "a").items():
        assert_close(found, expected[name], f"gradient of {name}, compiled and eager", within=1e-4)
