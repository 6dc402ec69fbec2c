"""A stored adapter: what an adapter folder holds, read once, for a host or for a bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites.site import Sites
from deltatune.core.trained_rows import TrainedRows
from deltatune.store.config_checks import acts_outside_body, site_contradictions, stored_prefix
from deltatune.store.fingerprint import base_identities, compare_bases, served_identities
from deltatune.store.mapped_tensors import MappedTensors
from deltatune.store.tensors import attach_filled, not_finite

if TYPE_CHECKING:
    from deltatune.core.host_parts.bank import Bank

Identities = Mapping[bool, Mapping[str, Any]]
"""Of a base, with the language-model head (False) and without (True)."""


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter as it was read from its folder, before it is fitted to a model.

    Its tensors are mapped from the file: their values are read when they are copied. It can be attached to several
    hosts, or under several names; each time its head is built anew.
    """

    folder: Path
    """Where it was read, for errors."""
    method: Method
    tensors: Mapping[str, Tensor]
    """By the stable names of `Adapter.tensors`, those of its head among them."""
    own_head: bool = False
    """Whether it has copies of the model's own task heads."""
    make_head: Callable[[nn.Module | None], nn.Module | None] = lambda given: given
    """Builds its head without the stored values; takes the module of a head of the user's own."""
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The task's metadata (labels, columns, tokenizer)."""
    base: Mapping[str, Any] | None = None
    """The identity of the base that it was trained on; None where its format does not say."""
    sites: Mapping[str, str] | None = None
    """The module of each of its sites; None where its format does not say."""
    trained_rows: TrainedRows | None = None
    problems: Sequence[str] = ()
    """What contradicts itself in the folder; told when it is attached, with all else that does not fit."""
    misshapen_head: Sequence[str] = ()
    """Tensors of its head that are not those of its config, which is then not built."""
    finite: bool = False
    """Whether its values are known to be finite."""
    kind: str = "adapter"
    """What it is, for errors: `adapter`, `the PEFT adapter`."""

    def not_finite(self) -> list[str]:
        """What to say of every tensor that holds NaN or infinity."""
        if self.finite:
            return []
        return self.tensors.not_finite() if isinstance(self.tensors, MappedTensors) else not_finite(self.tensors)

    def fitted(self, host: Host) -> StoredAdapter:
        """Itself: its method and tensors do not depend on the model. Those of PEFT's folders do."""
        return self

    def head(self, given: nn.Module | None = None) -> nn.Module | bool | None:
        """Its head as `Host.attach` takes it, without the stored values. Raises DeltatuneError for unknown kinds."""
        module = None if self.misshapen_head else self.make_head(given)
        return module or (None if self.own_head and not self.misshapen_head else False)

    def attach_to(self, host: Host, name: str, other_base: bool = False, head: nn.Module | None = None) -> Adapter:
        """Attach it to a host.

        One error lists tensors that are missing, extra, misshapen or not finite, and entries of the folder that
        contradict each other, the tensors or the model. Raises DeltatuneError too if the base is another one. One that
        was trained on the bare transformer acts on it alone, also under a language-model head.
        """
        identities = base_identities(host)
        self._check_base(host, other_base, identities)
        adapter = attach_filled(
            host,
            name,
            self.method,
            self._fitting_tensors(),
            self._heading,
            seed=self.seed,
            head=self.head(head),
            extra=self.extra,
            problems=[*self.problems, *self.misshapen_head],
            check=lambda adapter: [] if self.sites is None else site_contradictions(adapter, self.sites),
            finite=self.finite,
            sites=self._sites_on(host, identities),
        )
        adapter.trained_rows = self.trained_rows
        return adapter

    def can_go_into(self, bank: Bank) -> bool:
        """Whether a bank can hold it: its method has a bank form, and it has no copies of the model's own heads."""
        return not self.own_head and bank.can_hold(self.method, self._sites_on(bank.host, served_identities(bank.host)))

    def put_into(self, bank: Bank, name: str, other_base: bool = False) -> None:
        """Write it into a slot of a host's bank, where that can hold it (`can_go_into`).

        Raises DeltatuneError as `attach_to` does, and BankFull when there is no free slot.
        """
        identities = served_identities(bank.host)
        self._check_base(bank.host, other_base, identities)
        sites = self._sites_on(bank.host, identities)
        problems = [*self.problems, *self.misshapen_head, *self.not_finite()]
        if self.sites is not None:
            problems += site_contradictions(bank.shape_of(self.method, sites).adapter, self.sites)
        raise_all(problems, self._heading if problems else "")
        head = self.make_head(None)
        bank.put(name, self.method, self.tensors, head=head, extra=self.extra, seed=self.seed, sites=sites)

    @property
    def _heading(self) -> str:
        return f"{self.kind} {self.folder} does not fit this model:"

    def _sites_on(self, host: Host, identities: Identities) -> Sites:
        """Where it may act on a host: on the bare transformer alone if it was trained on that, or depends on no more.

        The weights of a language-model head that is tied do not tell the two apart; then its class does, and its sites.
        """
        base, stored, sites = self.base, self.sites, host.sites
        if base is None or stored is None or base.get("shapes") != identities[True]["shapes"]:
            return sites
        prefix = stored_prefix(stored, sites)
        same = all(base.get(entry) == identities[False][entry] for entry in ("shapes", "architecture"))
        if acts_outside_body(stored, sites) or (same and prefix == sites.facts.prefix):
            return sites
        return sites.of_body(prefix)

    def _check_base(self, host: Host, other_base: bool, identities: Identities) -> None:
        if self.base is not None:
            problems = compare_bases(dict(self.base), host, other_base, identities)
            raise_all(problems, self._heading if problems else "")

    def _fitting_tensors(self) -> Mapping[str, Tensor]:
        """All tensors but those of a head that is not built: its size is not to be trusted."""
        if not self.misshapen_head:
            return self.tensors
        return {key: tensor for key, tensor in self.tensors.items() if not key.startswith("head.")}
