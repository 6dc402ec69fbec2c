"""A hosted model under another route, as a module: what trainers call a reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from deltatune.core.host import Host


class ReferenceModel(nn.Module):
    """The base of a host without adapters, or with one, in evaluation mode; it has no parameters of its own.

    A call switches the route and the modes, calls the model, and switches back. Trainers may replace its `forward`, as
    they do that of the model itself: the replaced one of the model is what is called.
    """

    def __init__(self, host: Host, adapter: str | None = None) -> None:
        """`adapter` is the name of the one that is on; None: the base alone."""
        super().__init__()
        object.__setattr__(self, "host", host)  # no submodule: its parameters, modes and devices are the model's
        self.adapter = adapter

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Outputs of the model under the reference's route."""
        host: Host = self.host  # type: ignore[assignment]
        with host.using(self.adapter, training=False):
            return host.model(*inputs, **options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As a call."""
        return self(*inputs, **options)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.host.model.config  # type: ignore[union-attr]
