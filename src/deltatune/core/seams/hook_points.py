"""Hook points: the permanent hooks of modules that adapters change. Attaching and routing change data, not hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltatune.core.attention_call import AttentionCall
from deltatune.core.bank_delta import BankDelta
from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route, RowRuns, RowsAndWeight, mix
from deltatune.core.sites.convolutions import Kernel, as_image, as_tokens
from deltatune.core.sites.fused_projections import put, take
from deltatune.core.sites.site import Site, Slice


class InputTap:
    """Pre-hook that keeps the last input of the module a sublayer starts with."""

    def __init__(self) -> None:
        self.wanted = False
        self.value: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"wanted": self.wanted, "value": None}  # intermediate values are neither copied nor saved

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.wanted:
            self.value = args[0] if args else kwargs["hidden_states"]


class BatchContext:
    """Masks of the batch in the current forward."""

    mask: Tensor | None = None
    """Attention mask (B, S) as the model saw it, virtual tokens and the cache included; None if every token is real."""
    decoder_mask: Tensor | None = None
    """The mask of the decoder behind an encoder."""
    offsets: Tensor | None = None
    """Columns (B, T) of the tokens from the first one of each row's answer, if an active Delta needs them."""

    reads_prompt = False
    """Whether an active Delta needs the token ids of the text."""
    vocabulary = 0
    """The first virtual id."""
    called = False
    """Whether the whole model is being called, with its hooks."""
    generating = False
    """Whether `host.generate` runs, which puts a prompt's tokens in itself: some encoders embed padding apart."""
    prompted = False
    """Whether an active adapter has virtual tokens."""
    prompt_ids: Tensor | None = None
    """Those ids (B, T), -1 at padding, virtual tokens and the answer."""

    def __init__(self) -> None:
        self.runs = RowRuns()

    def see_prompt(self, ids: Any) -> None:
        """Keep the token ids (B, T) of the text, if an active Delta needs them; masks and offsets are set before."""
        if not self.reads_prompt or not isinstance(ids, Tensor):
            self.prompt_ids = None
            return
        text = ids < self.vocabulary
        if self.mask is not None:
            text = text & self.mask[:, -ids.shape[1] :].bool()
        if self.offsets is not None:
            text = text & (self.offsets < 0)
        self.prompt_ids = ids.masked_fill(~text, -1)

    def see_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of an encoder before a decoder: generate() calls it alone."""
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self.see_prompt(kwargs.get("input_ids", args[0] if args else None))


class PluggedDelta(NamedTuple):
    """One Delta at a hook point, with the sources of its input."""

    name: str
    site: Site
    delta: Delta
    tap: InputTap | None
    norm: nn.Module | None
    enabled: Callable[[], bool]
    """Whether it takes part: not if its layer is dropped."""


class ActiveDelta(NamedTuple):
    """A Delta on some rows of a call of attention, with the attention's input (B, T, D) if it needs it."""

    delta: Callable[[AttentionCall], Any]
    acting: RowsAndWeight
    x: Tensor | None


class HookPoint:
    """The Deltas at one module. `plugged` are all that are attached there, `active` those of the current route."""

    def __init__(self, context: BatchContext) -> None:
        self.context = context
        self.plugged: dict[str, list[PluggedDelta]] = {}
        """By adapter, so that choosing among many costs no more than among few."""
        self.active: tuple[tuple[PluggedDelta, ...], ...] = ()
        """Stages, one after the other; all Deltas of a stage see the same `h`."""
        self.route = Route()
        self.alone: tuple[Delta, float] | None = None
        """The common case, prepared: one Delta on a whole linear map, with the same weight in all rows."""

    def follow(self, route: Route, names: set[str]) -> None:
        """Choose the active Deltas: those on the module itself first, then those on the sublayer it ends."""
        here = sorted(names & self.plugged.keys(), key=_stacking_order(route))
        by_adapter = [[plugged for plugged in self.plugged[name] if plugged.enabled()] for name in here]
        together = [plugged for group in by_adapter for plugged in group]
        groups = by_adapter if route.order else [together]
        inner = [tuple(plugged for plugged in group if plugged.site.kind != "sublayer") for group in groups]
        outer = [tuple(plugged for plugged in group if plugged.site.kind == "sublayer") for group in groups]
        self.active = tuple(stage for stage in (*inner, *outer) if stage)
        self.route = route
        plain = len(together) == 1 and route.rows is None and _is_plain(together[0])
        self.alone = (together[0].delta, route.uniform[together[0].name]) if plain else None

    def active_deltas(self, batch: int, device: torch.device) -> list[ActiveDelta]:
        """Active Deltas of a call of attention, ready to be called with their rows."""
        active = []
        here = [plugged for stage in self.active for plugged in stage]
        for plugged in here:
            acting = self.route.rows_and_weight(plugged.name, batch, device, exact=len(here) > 1)
            if acting is not None:
                self.tell(plugged, acting, batch)
                x = self.read(plugged, None, ()) if plugged.delta.needs.attention_input else None
                active.append(ActiveDelta(plugged.delta, acting, x))
        return active

    def tell(self, plugged: PluggedDelta, acting: RowsAndWeight, batch: int) -> None:
        """Tell a Delta what it needs of its rows: slots, which tokens are real or the answer's, what the text is."""
        if acting.slots is not None:
            assert isinstance(plugged.delta, BankDelta)
            plugged.delta.rows = acting.slots
        if plugged.delta.needs.padding_mask:
            behind = plugged.site.name.startswith("decoder.")
            plugged.delta.mask = _of_rows(self.context.decoder_mask if behind else self.context.mask, acting, batch)
        if plugged.delta.needs.answer_offsets:
            plugged.delta.offsets = _of_rows(self.context.offsets, acting, batch)
        if plugged.delta.needs.prompt_ids:
            plugged.delta.prompt_ids = _of_rows(self.context.prompt_ids, acting, batch)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.active:
            return None
        if self.alone is not None and isinstance(output, Tensor):
            delta, weight = self.alone
            return delta.add(output, args[0], weight)
        h = output if isinstance(output, Tensor) else output[0]
        for stage in self.active:
            h = self.change(h, stage, args)
        return h if isinstance(output, Tensor) else (h, *output[1:])

    def change(self, h: Tensor, stage: Sequence[PluggedDelta], args: tuple[Any, ...]) -> Tensor:
        """Apply one stage; all of its Deltas see the same `h`."""
        by_slice: dict[Slice | None, list[tuple[Delta, Tensor, RowsAndWeight]]] = {}
        for plugged in stage:
            acting = self.route.rows_and_weight(plugged.name, h.shape[0], h.device)
            if acting is not None:
                self.tell(plugged, acting, h.shape[0])
                change = (plugged.delta, self.read(plugged, h, args), acting)
                by_slice.setdefault(plugged.site.slice, []).append(change)
        out = mix(h, by_slice.pop(None, []), self.context.runs)
        for cut, changes in by_slice.items():
            part = take(h, cut)
            changed = mix(part, changes, self.context.runs)
            out = put(out, cut, changed if out is h else take(out, cut) + (changed - part))
        return out

    def read(self, plugged: PluggedDelta, h: Any, args: tuple[Any, ...]) -> Tensor:
        """The `x` of one Delta."""
        reads = plugged.delta.reads
        if reads == "output" or (reads == "normed" and plugged.norm is None):
            return h  # type: ignore[no-any-return]
        if plugged.tap is None:
            return self.input(args)
        x = plugged.tap.value
        if x is None:
            raise DeltatuneError(
                f"site {plugged.site.name!r} was reached before its input at {plugged.site.read!r}; "
                "this model calls its modules in an order that is not supported"
            )
        return plugged.norm(h + x) if reads == "normed" and plugged.norm is not None else x

    def input(self, args: tuple[Any, ...]) -> Tensor:
        """The module's own input."""
        x: Tensor = args[0]
        return x


def _of_rows(tensor: Tensor | None, acting: RowsAndWeight, batch: int) -> Tensor | None:
    """The rows of a batch's tensor on which an adapter acts.

    None where a module sees the tokens of all rows as a batch of their own (OPT's FFN): they have no mask of a text.
    """
    if tensor is None or acting.rows is None:
        return tensor
    return tensor.index_select(0, acting.rows) if len(tensor) == batch else None


def _stacking_order(route: Route) -> Callable[[str], tuple[int, str]]:
    """Order of adapters at a module: as stacked, else by name."""
    return lambda name: (route.order.index(name) if name in route.order else 0, name)


def _is_plain(plugged: PluggedDelta) -> bool:
    whole = plugged.site.kind == "linear" and plugged.site.slice is None and plugged.site.kernel is None
    needs = plugged.delta.needs
    return (
        whole
        and plugged.delta.reads == "input"
        and not isinstance(plugged.delta, BankDelta)
        and not (needs.padding_mask or needs.answer_offsets or needs.prompt_ids)
    )


class ConvolutionHookPoint(HookPoint):
    """The hook point of a convolution: Deltas see its output (B, C, H, W) as tokens (B, H·W, C), its input as patches.

    Those that compute with images themselves get the input as it is.
    """

    def __init__(self, context: BatchContext, kernel: Kernel) -> None:
        super().__init__(context)
        self.kernel = kernel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.active:
            return None
        h = as_tokens(output)
        for stage in self.active:
            h = self.change(h, stage, args)
        return as_image(h, *output.shape[-2:])

    def read(self, plugged: PluggedDelta, h: Any, args: tuple[Any, ...]) -> Tensor:
        """The `x` of one Delta: the output, the image, or its patches."""
        if plugged.delta.reads != "input":
            return h  # type: ignore[no-any-return]
        image: Tensor = args[0]
        return image if plugged.delta.needs.image else self.kernel.patches(image)


class InputHookPoint(HookPoint):
    """The hook point of a map's input: a pre-hook."""

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook: change the map's input."""
        if not self.active:
            return None
        h = args[0]
        for stage in self.active:
            h = self.change(h, stage, args)
        return (h, *args[1:])


class EmbeddingHookPoint(HookPoint):
    """The hook point of a token embedding: keeps the ids as they came and passes on only ids of the vocabulary.

    A prompt has one at every stack: T5's and BART's classifiers hand the encoder's ids to the decoder.
    """

    def __init__(self, context: BatchContext, vocabulary: int) -> None:
        super().__init__(context)
        self.vocabulary = vocabulary
        self.ids: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook: clamp virtual ids."""
        if not self.active:
            return None
        self.ids = args[0]
        expected = self.context.called or self.context.generating
        if self.context.prompted and not expected and not bool((args[0] >= self.vocabulary).any()):
            raise DeltatuneError(
                "the model was called by its `forward`, or its embedding alone, past the hooks that put a soft "
                "prompt's tokens in front of a text: call model(...), and host.generate(...) to generate; "
                "host.using(None) reads the base's embedding. sentence-transformers calls `forward`: choose a method "
                "without virtual tokens there, such as Prefix or LoRA"
            )
        return (args[0].clamp(max=self.vocabulary - 1), *args[1:])

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hook: virtual ids have no vector in the table, so a weighted prompt adds to zero."""
        if not self.active:
            return None
        virtual = self.input(args) >= self.vocabulary
        return super().__call__(module, args, output.masked_fill(virtual.unsqueeze(-1), 0))

    def input(self, args: tuple[Any, ...]) -> Tensor:
        """The ids before clamping (B, T)."""
        assert self.ids is not None
        return self.ids
