"""How a linear map's weight is stored where it is no plain parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor


class StoredWeight(ABC):
    """A weight that is no plain parameter: codes and scales, from which the matrix is made when it is needed."""

    label: str
    """What it is, for readers: `nf4`, `NF4(double=False)`, `bitsandbytes nf4`."""
    shape: tuple[int, int]
    """(out, in)."""
    transposed = False
    """Whether the plain map held it as (in, out)."""

    @abstractmethod
    def read(self) -> Tensor:
        """The matrix (out, in), made anew, without gradients. Raises DeltatuneError where its layout is not known."""

    @abstractmethod
    def tensors(self) -> Iterable[Tensor]:
        """The tensors that are stored: their bytes are the weight's, and the first holds the codes."""

    def protect_(self) -> None:  # noqa: B027 (most packages leave their tensors alone)
        """Stop the module from changing its stored tensors when it is run."""
