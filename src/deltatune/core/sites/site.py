"""Sites: the places of a transformer that can be read and changed.

A `Site` has the same name in every family (`layers.3.attn.q`, `layers.3.ffn`, `embed`). `find_sites` derives them from
transformers' own declarations (block classes, input embeddings, base model) and from the one table of leaf names in
`module_names`. Methods see Sites only, never module names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.sites.convolutions import Kernel
from deltatune.core.sites.module_names import ATTENTION, FFN

Kind = Literal["linear", "input", "sublayer", "residual", "kv", "embed", "norm", "head", "weight"]


@dataclass(frozen=True)
class Slice:
    """Columns of a fused projection: `groups` equal runs of the output, in each the columns start to start + width.

    Contiguous (GPT-2, Phi-3): one group. Interleaved by head (GPT-NeoX, BLOOM): one group a head.
    """

    start: int
    width: int
    groups: int = 1


@dataclass(frozen=True)
class Site:
    """One named place: the module that is read, the module that is changed, and the widths a Delta must have."""

    name: str
    kind: Kind
    module: str
    """Path of the module whose output is changed (`input`: whose input; `kv`: the attention; `weight`: the owner)."""
    read: str
    """Path of the module whose input is the sublayer's input `x`; the same as `module` for linear maps."""
    width_in: int
    """Width of `x`; the vocabulary size at `embed`."""
    width_out: int
    """Width of `h`; at `kv` the width of the keys, H_kv * K."""
    params: int = 0
    """Number of base parameters here (of the slice only, where there is one)."""
    bias: bool = False
    """Whether the module has a bias."""
    transposed: bool = False
    """Whether the weight is stored (in, out), as GPT-2's Conv1D does."""
    slice: Slice | None = None
    norm: str | None = None
    """Post-LN stacks: the LayerNorm after this sublayer's residual sum, whose residual is `x`."""
    layer: int | None = None
    """Number of the block within its stack, from 0; None outside the blocks."""
    depth: int = 0
    """Number of blocks in the stack."""
    attribute: str = ""
    """Kind `weight`: the parameter's attribute name."""
    causal: bool = False
    """Whether a token here sees only those before it."""
    tied: bool = False
    """Whether another module shares the weight here, as a tied language-model head does."""
    quantized: str = ""
    """What the weight here is quantised to, such as `nf4`; empty for a plain weight."""
    shared: bool = False
    """Whether the module does not keep the rows of a batch apart, so that all have the same adapters here: it also sees
    what they share (DeBERTa's relative positions), or the rows in the second dimension (Longformer)."""
    kernel: Kernel | None = None
    """A convolution's geometry: it is a linear map of patches, and `width_in` is that of a patch."""

    @property
    def path(self) -> str:
        """Kind `weight`: the parameter's path in this model, which is its name but in `Sites.of_body`."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


class Sites(Mapping[str, Site]):
    """All sites of one model by name, in model order, with glob selection and coverage."""

    def __init__(
        self,
        sites: Iterable[Site],
        weights: Iterable[Site],
        unnamed: Sequence[str],
        facts: Facts,
        labels: Sequence[str],
        body: str | None = None,
    ) -> None:
        self._sites = {site.name: site for site in sites}
        self.weights = {site.name: site for site in weights}
        """Every distinct base parameter as a site of kind `weight`."""
        self.unnamed = tuple(unnamed)
        """Linear maps without a role."""
        self.facts = facts
        self.heads = tuple(labels)
        """Paths of the model's own task heads (not of its language-model head)."""
        self.body = body
        """Of the body alone (`of_body`): what the names of its weights begin with; None for all sites."""
        self._of_body: dict[str, Sites] = {}

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def base_params(self) -> int:
        """Number of base parameters, tied ones once, task heads left out."""
        return self.facts.params

    def of_body(self, prefix: str) -> Sites:
        """The sites of the bare transformer alone, as an adapter that was trained on it meets them under another head.

        `prefix`: path of the bare transformer where the adapter was trained, with a final dot, or empty; the weights
        are named by their paths there, because an adapter's tensors and random draws depend on names.
        """
        if prefix not in self._of_body:
            outside, here = self.facts.outside, self.facts.prefix
            weights = [site for site in self.weights.values() if site.module not in outside]
            weights = [
                replace(site, name=prefix + name.removeprefix(here)) if (name := site.path).startswith(here) else site
                for site in weights
            ]
            facts = replace(self.facts, params=sum(site.params for site in weights))
            sites = [site for site in self._sites.values() if site.module not in outside]
            self._of_body[prefix] = Sites(sites, weights, self.unnamed, facts, self.heads, prefix)
        return self._of_body[prefix]

    def match(self, patterns: str | Sequence[str], kinds: Sequence[Kind] = ()) -> list[Site]:
        """Return the sites that match any of the globs, in model order.

        `*` stands for one or more whole components and `{a,b}` for alternatives: `"*.attn.{q,v}"`. Every alternative
        must match at least one site (of the given `kinds`), otherwise one error names each that did not. No glob at all
        is an error too.
        """
        wanted = [single for pattern in _as_list(patterns) for single in expand(pattern)]
        pool = [site for site in self._sites.values() if not kinds or site.kind in kinds]
        chosen: dict[str, Site] = {}
        missing: list[str] = []
        for pattern in wanted:
            matches = _compile(pattern)
            matched = [site for site in pool if matches.fullmatch(site.name)]
            chosen.update((site.name, site) for site in matched)
            if not matched:
                missing.append(pattern)
        if missing:
            raise DeltatuneError(self._explain(missing, pool))
        if not wanted:
            have = ", ".join(sorted({generic(site.name) for site in pool})) or "none"
            raise DeltatuneError(f"sites=() names no site; sites of this model: {have}")
        return [site for site in self._sites.values() if site.name in chosen]

    def _explain(self, missing: list[str], pool: list[Site]) -> str:
        kinds = sorted({generic(site.name) for site in pool})
        closed = any(name.endswith(".heads") for name in self) and not any(name.endswith(".kv") for name in self)
        seam = ", as its attention does not run through transformers' AttentionInterface"
        lines = [
            f"no site of this {self.facts.architecture} matches {p!r}{_sites_of_module(p, pool) or nearest(p, kinds)}"
            + (seam if closed and p.endswith("kv") else "")
            for p in missing
        ]
        shown = sorted({_shown(kind, self.facts) for kind in kinds})
        lines.append("sites of this model: " + (", ".join(shown) if shown else "none of this kind"))
        if self.unnamed:
            lines.append(
                "linear maps without a role (name them with roles={'leaf': 'attn.q'}): " + ", ".join(self.unnamed[:8])
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Facts:
    """Properties of the model beside its sites."""

    architecture: str
    hidden: int
    vocabulary: int
    params: int
    encoder_decoder: bool
    decoder: bool
    positions: int | None
    """Longest sequence of the position table, None if there is none."""
    position_modules: tuple[str, ...]
    """Modules that turn position ids into vectors or rotations and take the ids as an argument."""
    prefix: str = ""
    """Path of the bare transformer in a model with a head, with a final dot; empty in one without."""
    outside: frozenset[str] = frozenset()
    """Paths of the modules outside the bare transformer of a language model; empty in other models."""
    denoiser: bool = False
    """Whether it is a model of diffusers."""


def expand(pattern: str) -> list[str]:
    """Expand `{a,b}` alternatives: `"*.{q,v}"` becomes `["*.q", "*.v"]`."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [single for part in braces.group(1).split(",") for single in expand(head + part.strip() + tail)]


def _sites_of_module(pattern: str, pool: Sequence[Site]) -> str:
    """The names of the sites at the modules that a pattern names (`q_proj`), for errors; empty if it names none."""
    leaf = pattern.split(".")[-1]
    roles = [f"attn.{role}" for role, leaves in ATTENTION.items() if leaf in leaves - {role}]
    roles += [f"ffn.{role}" for role, leaves in FFN.items() if leaf in leaves]
    at_module = [site.name for site in pool if site.kind == "linear" and site.module.split(".")[-1] == leaf]
    names = at_module or [site.name for site in pool if site.name.endswith(tuple(f".{role}" for role in roles))]
    globs = dict.fromkeys(repr("*." + name.rpartition(".*.")[2]) for name in map(generic, names) if ".*." in name)
    if not globs or any(site.name.split(".")[-1] == leaf for site in pool):
        return ""
    return f": that is a module's name, and site names are the same for all models; it is {' or '.join(globs)} here"


def generic(name: str) -> str:
    """Name with the block numbers replaced by `*`: `layers.3.attn.q` becomes `layers.*.attn.q`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def matches(pattern: str, name: str) -> bool:
    """Whether a glob of `Sites.match` matches a site's name."""
    return any(_compile(single).fullmatch(name) for single in expand(pattern))


def require(picked: Sequence[Site], what: str, sites: Sites) -> None:
    """Raise if no site was picked, naming what is missing and the sites of this model."""
    have = sorted({_shown(generic(site.name), sites.facts) for site in sites.values()})
    raise_all([] if picked else [f"this {sites.facts.architecture} has no {what}; it has: {', '.join(have)}"])


def _shown(name: str, facts: Facts) -> str:
    """A site's generic name in errors; of a denoiser, whose parts repeat the same sites, the glob of all parts."""
    return f"*.{name.rpartition('.*.')[2]}" if facts.denoiser and ".*." in name else name


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _compile(pattern: str) -> re.Pattern[str]:
    parts = []
    for component in pattern.split("."):
        if component == "*":
            parts.append(r"[^.]+(?:\.[^.]+)*")
        else:
            parts.append(re.escape(component).replace(r"\*", "[^.]*").replace(r"\?", "[^.]"))
    return re.compile(r"\.".join(parts))


def brief(names: Sequence[str], sites: Sites, kinds: Sequence[Kind]) -> tuple[str, ...]:
    """Globs that match exactly these sites: `layers.*.attn.q` for all of a kind, the full names otherwise."""
    wanted = set(names)
    globs: list[str] = []
    for pattern in dict.fromkeys(generic(name) for name in names):
        matched = {site.name for site in sites.match(pattern, kinds=kinds)}
        globs += [pattern] if matched <= wanted else [name for name in names if generic(name) == pattern]
    return tuple(globs)


def common_rank(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The rank that most sites have, and those of the others."""
    r = Counter(ranks.values()).most_common(1)[0][0]
    return r, {name: rank for name, rank in ranks.items() if rank != r}


def brief_ranks(odd: Mapping[str, int], ranks: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Pairs of a glob and a rank for `LoRA(ranks=...)`, where `ranks` are those of all sites of the method."""
    globs: dict[str, int] = {}
    for name, rank in odd.items():
        of_kind = {ranks[other] for other in ranks if generic(other) == generic(name)}
        globs[generic(name) if len(of_kind) == 1 else name] = rank
    return tuple(globs.items())
