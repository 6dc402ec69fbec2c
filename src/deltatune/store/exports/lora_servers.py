"""Servers of many LoRAs on one base: vLLM, SGLang and TGI. Each says what it cannot serve, before anything is written.

The rules are those of the servers' own loaders: vLLM 0.32 and SGLang 0.5.23 as their sources have them, TGI as its
documentation says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.merging import merge_obstacles
from deltatune.store.atomic_files import MANIFEST
from deltatune.store.exports import vllm_architectures
from deltatune.store.exports.export_target import CannotExport, ExportedFiles, ExportRequest, Form, Write
from deltatune.store.exports.lora_factors import EXACT, LoRAFactors, NoLoRAForm, beyond_range, lora_factors
from deltatune.store.exports.lora_folder import check_lora_folder, write_lora_folder
from deltatune.store.fingerprint import quantizations
from deltatune.store.merged_model import save_merged

EMBEDDINGS = ("embed_tokens", "lm_head")
"""Last names of the modules that SGLang knows as embeddings."""
NO_LOGITS = r"(?!.*For(QuestionAnswering|MaskedLM|PreTraining|ImageClassification|AudioClassification)$).*"
"""All classes but those that vLLM and SGLang have no output for: they take them for something else, or refuse them."""
GENERATING = r".*(ForCausalLM|LMHeadModel|ForConditionalGeneration)"
SPEECH = frozenset({"WhisperForConditionalGeneration"})


@dataclass(frozen=True)
class LoRAServer:
    """A server, and what it takes."""

    label: str
    ranks: tuple[int, ...] = ()
    """Values that its limit on the rank can have; empty: any."""
    classes: str = ".*"
    """Pattern of the classes of transformers that it serves."""
    encoder_decoders: frozenset[str] | None = None
    """Encoder-decoders that it serves; None: all."""
    architectures: frozenset[str] = frozenset()
    """Architectures for which it takes LoRA; empty: not known here."""
    input_embeddings: frozenset[str] = frozenset()
    """Architectures of which it also takes LoRA on the input embeddings; empty: all."""
    output_embeddings: frozenset[str] = frozenset()
    """Architectures of which it also takes LoRA on the language-model head; empty: all."""
    embedding_names: tuple[str, ...] = ()
    """Last names of the embeddings that it knows; empty: any."""
    serve_lora: str = ""
    """The command line for a LoRA, with {base}, {name}, {folder} and {rank}."""
    serve_model: str = ""
    """The command line for a merged model, with {folder}."""
    remark: str = ""
    """What is not known of it here."""
    forms: tuple[Form, ...] = ("lora", "model")
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")

    def prepare(self, request: ExportRequest) -> Write:
        """Check all that the server's loader checks, and what it would leave out in silence."""
        return self._merged(request) if request.merge else self._lora(request)

    # ---- the adapter alone

    def _lora(self, request: ExportRequest) -> Write:
        host, name = request.host, request.name
        problems = [*_head_problems(host, name, self.label), *self._base_problems(host)]
        factors: LoRAFactors | None = None
        try:
            factors = lora_factors(host, name, request.weight, request.rank, request.bound)
        except NoLoRAForm as error:
            problems += error.reasons
        if factors is not None:
            problems += [*self._factor_problems(host, factors), *beyond_range(factors, _dtype(request))]
        if problems or factors is None:
            raise CannotExport([*problems, *self._advice(host, name)])
        made = factors
        dtype = _dtype(request)

        def write(folder: Path) -> ExportedFiles:
            write_lora_folder(host, name, made, folder, dtype)
            largest, error = check_lora_folder(host, name, request.weight, folder, made, dtype)
            base = str(getattr(host.model.config, "_name_or_path", "") or "BASE")
            line = self.serve_lora.format(base=base, name=name, folder=folder, rank=self._limit(made.rank))
            notes = (*_conversion(request, made), *self._notes(host))
            return ExportedFiles(folder, self.label, "lora", largest, error, made.rank, notes, (line,))

        return write

    def _base_problems(self, host: Host) -> list[str]:
        """Why the server takes no LoRA on this base."""
        kind = host.sites.facts.architecture
        declared = [str(each) for each in getattr(host.model.config, "architectures", None) or ()]
        problems = self._unserved(kind, host.sites.facts.encoder_decoder)
        if problems:
            return problems
        if self.architectures and kind not in self.architectures:
            problems.append(f"it takes no LoRA for {kind}")
        elif declared and kind not in declared:
            problems.append(
                f"the adapter is on {kind}, and the base's folder says {', '.join(declared)}, whose modules have other "
                "names: the server would not find them"
            )
        if host.sites.facts.encoder_decoder:
            problems.append(f"{kind} is an encoder-decoder, for which it takes no LoRA")
        return problems

    def _unserved(self, kind: str, encoder_decoder: bool) -> list[str]:
        """Why it does not serve models of a class at all."""
        if encoder_decoder and self.encoder_decoders is not None and kind not in self.encoder_decoders:
            return [f"{kind} is an encoder-decoder, which {self.label} does not serve"]
        return [] if re.fullmatch(self.classes, kind) else [f"{self.label} does not serve {kind}"]

    def _advice(self, host: Host, name: str) -> list[str]:
        """What can be done instead."""
        adapter, facts = host.adapters[name], host.sites.facts
        if merge_obstacles(adapter):
            return ["it cannot be merged either; `deltatune serve` serves it as it is"]
        if adapter.head is not None:
            return [
                "its weights merge exactly: `--merge` (merge=True) writes the whole model, if transformers' class for "
                f"it computes the same from the head and {self.label} serves that class"
            ]
        if self._unserved(facts.architecture, facts.encoder_decoder):
            return ["`deltatune serve` serves it as it is"]
        return ["it merges exactly: `--merge` (merge=True) writes the whole model"]

    def _factor_problems(self, host: Host, factors: LoRAFactors) -> list[str]:
        problems = []
        kind = host.sites.facts.architecture
        if self.ranks and factors.rank > self.ranks[-1]:
            problems.append(f"the rank is {factors.rank}, and its largest is {self.ranks[-1]}")
        known = not self.architectures or kind in self.architectures
        for path, site in factors.sites.items():
            leaf = path.rpartition(".")[2]
            if site.tied:
                problems.append(f"{path} shares its weight with another module, where it would change too")
            for embeddings, allowed in (
                (site.kind == "embed", self.input_embeddings),
                (leaf == "lm_head", self.output_embeddings),
            ):
                if embeddings and allowed and known and kind not in allowed:
                    problems.append(f"{path}: it takes no LoRA on these embeddings of {kind}")
            if site.kind == "embed" and self.embedding_names and leaf not in self.embedding_names:
                names = " or ".join(self.embedding_names)
                problems.append(f"{path}: embeddings that are not called {names} are left out")
        return problems

    def _limit(self, rank: int) -> int:
        """The smallest limit on the rank that can be set and lets this one through."""
        return next((limit for limit in self.ranks if limit >= rank), rank)

    def _notes(self, host: Host) -> Iterable[str]:
        stored = quantizations(host)
        if stored:
            yield (
                f"the adapter is of a base stored in {', '.join(stored)}; let {self.label} store the base so too: on "
                "other weights it computes something else"
            )
        if self.remark:
            yield self.remark

    # ---- the whole model

    def _merged(self, request: ExportRequest) -> Write:
        host, name = request.host, request.name
        problems = merge_obstacles(host.adapters[name])
        facts = host.sites.facts
        if host.adapters[name].head is None:
            problems += self._unserved(facts.architecture, facts.encoder_decoder)
        if problems:
            raise CannotExport([*problems, f"it can be served unmerged by `deltatune serve`, not by {self.label}"])

        def write(folder: Path) -> ExportedFiles:
            done = save_merged(host, name, folder, request.tokenizer, _dtype(request), request.weight)
            (folder / MANIFEST).unlink()  # the folder's own is written at the end
            if host.adapters[name].head is not None and done.classifier is None:
                raise DeltatuneError(
                    f"{name!r} has a head, which cannot become a part of the model: {'; '.join(done.notes)}. "
                    f"{self.label} would serve the body without it"
                )
            if done.classifier and (unserved := self._unserved(done.classifier, facts.encoder_decoder)):
                raise DeltatuneError(
                    f"{unserved[0]}, which {name!r} with its head becomes; `deltatune merge` writes that model for "
                    "transformers"
                )
            line = self.serve_model.format(folder=folder)
            return ExportedFiles(folder, self.label, "model", done.difference, done.error, None, done.notes, (line,))

        return write


def _head_problems(host: Host, name: str, label: str) -> list[str]:
    """Heads, which no LoRA holds."""
    adapter = host.adapters[name]
    problems = []
    if adapter.head is not None:
        problems.append(f"it has a {type(adapter.head).__name__} for its task, which is no LoRA and would be left out")
    copies = sorted({site.module for _, site, _ in adapter.entries() if site.kind == "head"})
    if copies:
        problems.append(f"it has its own copy of {', '.join(copies)}, which is no LoRA (modules_to_save)")
    return problems


def _conversion(request: ExportRequest, factors: LoRAFactors) -> Iterable[str]:
    if factors.converted:
        lost = "nothing but rounding" if factors.error <= EXACT else f"{factors.error:.2g} of it (norm)"
        yield f"the change of {', '.join(factors.converted)} became LoRA of rank {factors.rank}, losing {lost}"
    if request.weight != 1:
        yield f"the weight {request.weight:g} is in B"


def _dtype(request: ExportRequest) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, request.dtype or "float32")
    return dtype


VLLM = LoRAServer(
    "vLLM",
    classes=NO_LOGITS,
    encoder_decoders=SPEECH,
    ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
    architectures=vllm_architectures.SERVED,
    input_embeddings=vllm_architectures.WITH_BOTH_EMBEDDINGS | vllm_architectures.WITH_INPUT_EMBEDDINGS,
    output_embeddings=vllm_architectures.WITH_BOTH_EMBEDDINGS,
    serve_lora="vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}",
    serve_model="vllm serve {folder}",
)
SGLANG = LoRAServer(
    "SGLang",
    classes=NO_LOGITS,
    encoder_decoders=SPEECH,
    embedding_names=EMBEDDINGS,
    serve_lora="python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths {name}={folder}",
    serve_model="python -m sglang.launch_server --model-path {folder}",
    remark="SGLang's rules are read from its sources (0.5.23); no server of it has loaded the folder here",
)
TGI = LoRAServer(
    "TGI",
    classes=GENERATING,
    serve_lora="text-generation-launcher --model-id {base} --lora-adapters {name}={folder}",
    serve_model="text-generation-launcher --model-id {folder}",
    remark="TGI's rules are those of its documentation; no server of it has loaded the folder here",
)
