"""Prediction: the answers of one adapter, or of an ensemble of adapters, for rows, in row order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.classification import softmax
from deltatune.tasks.collator import PaddingCollator, collator_for
from deltatune.tasks.diffusion.text_to_image import EncodedPictures, TextToImage
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import PromptCollator
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.media_rows import check_inputs
from deltatune.tasks.mixture import Mixture, MixtureEncoded
from deltatune.tasks.preferences.pair_collator import REJECTED_IDS, PairCollator
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.task import Encoded, LanguageModelTask, Row, Task, TokenRow, row_length
from deltatune.tasks.tokenization import longest_input
from deltatune.training.denoising import validation_losses
from deltatune.training.forward import logits, read_first
from deltatune.training.inference.batches import device_of, map_batches, row_logits
from deltatune.training.inference.decoding import generate_answers
from deltatune.training.inference.likelihood import likelihood_rows, negative_log_likelihoods
from deltatune.training.inference.pair_rewards import pair_rewards
from deltatune.training.inference.prefix_cache import cached_scores, plan
from deltatune.training.inference.text_vectors import text_vectors
from deltatune.training.scaling.lower_layers import lower_layers
from deltatune.training.scaling.probe_features import pooled_vectors, probe_head, vector_logits
from deltatune.training.scaling.row_states import RepeatedRows
from deltatune.training.task_model import part_logits


def predict(
    host: Host,
    name: str,
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 64,
    precision: str = "auto",
    part: str | None = None,
    weight: float = 1.0,
) -> Any:
    """Return one adapter's answers for N rows, encoded or not: the input of `task.decode` and `task.score`.

    For classification these are logits (N, C) in float32. Of a mixture, `part` names the part whose rows these are;
    without it each row knows its own, and the answers are (part, answer) of each. `weight` multiplies the adapter's
    changes, not its head. Route and modes of the model are restored.
    """
    mixture, task = task, task.part(part) if isinstance(task, Mixture) and part is not None else task
    encoded = ensure_encoded(host, name, task, rows, tokenizer, labelled=False)
    if not len(encoded):
        return task.collect([], encoded)
    if isinstance(encoded, MixtureEncoded):
        return encoded.in_row_order({
            each: predict(host, name, mixture, part_rows, tokenizer, batch_size, precision, each, weight)
            for each, part_rows in encoded.parts.items()
        })  # fmt: skip
    bfloat16 = uses_bfloat16(host.model, precision)
    with host.using({name: weight}, training=False), torch.inference_mode():
        if isinstance(task, TextToImage) and isinstance(encoded, EncodedPictures):
            return task.collect(validation_losses(host, name, task, encoded, bfloat16), encoded)
        if isinstance(task, Prefer) and REJECTED_IDS in encoded.rows[0]:
            collate = adapter_collator(host, name, tokenizer, encoded)
            return task.collect(pair_rewards(host, task, encoded, collate, bfloat16), encoded)
        if task.answers == "text":
            return generate_answers(host, task, encoded, tokenizer, batch_size, bfloat16)
        collate = adapter_collator(host, name, tokenizer, encoded)
        if isinstance(task, LanguageModelTask):
            repeated = RepeatedRows(encoded, collate, likelihood_rows(encoded), certain=False)
            with lower_layers(host, repeated):
                return task.collect(negative_log_likelihoods(host, task, encoded, collate, bfloat16), encoded)

        if isinstance(task, LabelWords) and isinstance(collate, PromptCollator):
            groups = plan(host, task, encoded, collate)
            scores = groups and cached_scores(host, task, encoded, groups, collate, batch_size, bfloat16)
            if scores:
                return task.collect(scores, encoded)

        def batch_logits(batch: dict[str, Tensor]) -> Tensor:
            return part_logits(host, name, mixture, part, batch, bfloat16)

        repeated = RepeatedRows(encoded, collate, batch_size, certain=False)
        head = None if isinstance(mixture, (Mixture, LabelWords)) else probe_head(host, name, len(encoded))
        vectors = None if head is None else pooled_vectors(host, head, repeated, bfloat16)
        if head is not None and vectors is not None:
            return task.collect(vector_logits(head, vectors, repeated), encoded)
        with lower_layers(host, None if head is not None else repeated):
            return task.collect(row_logits(encoded, collate, batch_size, device_of(host), batch_logits), encoded)


def ensure_encoded(
    host: Host,
    name: str,
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    labelled: bool = True,
) -> Encoded:
    """Encode rows unless they are encoded already.

    Raises DeltatuneError for encoded rows that are too long for this adapter on this base.
    """
    if not isinstance(rows, Encoded):
        return encode_for(host, name, task, rows, tokenizer, labelled)
    positions = longest_input(host.model)
    taken = 0 if task.has_virtual_tokens else positions_taken(host, name)
    longest = max((max(row_length(row), len(row.get(REJECTED_IDS, ()))) for row in rows), default=0)
    if positions is not None and longest + taken > positions:
        raise DeltatuneError(
            f"the encoded rows have up to {longest} tokens and adapter {name!r} adds {taken}, more than the "
            f"{positions} this model takes: encode them with max_length={positions - taken} or less"
        )
    return rows


def encode_for(
    host: Host, name: str, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, labelled: bool = True
) -> Encoded:
    """Encode rows for one adapter on this base, whose virtual tokens and shifted positions shorten the longest input.

    Raises DeltatuneError for a base that cannot do the task, and for rows that the task refuses.
    """
    if isinstance(task, TextToImage):
        return replace(task.encode(rows, tokenizer), row_hashes=row_hashes(task, rows))
    kind: str = family(host.model.config)  # type: ignore[arg-type]
    for each in task.parts.values() if isinstance(task, Mixture) else (task,):
        if kind not in each.families:
            families = " or an ".join(each.families)
            reason = "encoder models cannot generate text; " if kind == "encoder" else ""
            raise DeltatuneError(
                f"{type(host.model).__name__} is an {kind}: {reason}{type(each).__name__} needs a {families}"
            )
    if isinstance(task, LanguageModel) and host.sites.facts.decoder and host.adapters[name].needs.answer_offsets:
        raise DeltatuneError(
            f"{host.adapters[name].method!r} treats a prompt and its answer differently, and the texts of language "
            "modelling have no prompt; use generate with columns input and output, or another method"
        )
    for each in task.parts.values() if isinstance(task, Mixture) else (task,):
        check_inputs(getattr(each, "inputs", "text"), tokenizer)
    _check_virtual_tokens(host, name, task, tokenizer)
    positions, taken = longest_input(host.model), positions_taken(host, name)
    joined = kind == "decoder"  # decoders have prompt and answer in one sequence
    if task.compares_texts:
        comparing: Any = task
        rows = comparing.with_demonstrations(
            rows, lambda texts, keep: text_vectors(host, tokenizer, texts, comparing.encoder, keep)
        )
    encoded = task.encode(rows, tokenizer, positions=positions, positions_taken=taken, labelled=labelled, joined=joined)
    return replace(encoded, row_hashes=row_hashes(task, rows)) if labelled else encoded


def _check_virtual_tokens(host: Host, name: str, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DeltatuneError where a template places other virtual tokens than the adapter has."""
    if not isinstance(task, LabelWords) or not task.has_virtual_tokens:
        return
    adapter, placed = host.adapters[name], len(task.templates[0].initial_ids(tokenizer))
    if adapter.needs.virtual_tokens != placed:
        raise DeltatuneError(
            f"the template {task.template!r} has {placed} virtual tokens, and {adapter.method!r} trains "
            f"{adapter.needs.virtual_tokens}: write the template into the method, as Prompt(template=...) or "
            "PTuning(template=...)"
        )


def adapter_collator(
    host: Host, name: str, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], pack: bool = False
) -> PaddingCollator:
    """The collator of rows like these for this base, with padding that leaves the adapter its positions.

    Tasks that look answers up by position (tagging, extractive QA) are padded on the right.
    """
    left = False if isinstance(rows, Encoded) and rows.facts is not None else None
    if REJECTED_IDS in rows[0]:
        if pack:
            raise DeltatuneError("preference pairs cannot be packed: set packing=False")
        plain = collator_for(host.model, tokenizer, rows[0], free_positions(host, name), left=left)
        return PairCollator(plain.fill, plain.left, plain.longest)
    if "words" not in rows[0]:
        return collator_for(host.model, tokenizer, rows[0], free_positions(host, name), pack, left)
    if pack:
        raise DeltatuneError("rows with label words cannot be packed: set packing=False")
    segments = int(getattr(host.model.config, "type_vocab_size", 2)) > 1
    example = {**rows[0], "token_type_ids": []} if "types" in rows[0] and segments else rows[0]
    plain = collator_for(host.model, tokenizer, example, free_positions(host, name))
    facts = host.sites.facts
    return PromptCollator(
        plain.fill, False, plain.longest, vocabulary=facts.vocabulary, encoder_decoder=facts.encoder_decoder
    )


def positions_taken(host: Host, name: str) -> int:
    """Positions of the base that an adapter takes: its virtual tokens, and the shift of the real ones."""
    adapter = host.adapters[name]
    shift = adapter.needs.position_shift + adapter.needs.answer_shift if host.sites.facts.position_modules else 0
    return adapter.needs.virtual_tokens + shift


def free_positions(host: Host, name: str) -> int | None:
    """Positions of the base that an adapter leaves to a text; None if the base has no limit."""
    positions = longest_input(host.model)
    return None if positions is None else positions - positions_taken(host, name)


def vote(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Share of the votes for each class (N, C), from logits (N, C) of each member; ties go by probability.

    Lester et al. 2021, section 6, https://arxiv.org/abs/2104.08691
    """
    members = _checked(logits)
    classes = members.shape[-1]
    votes = np.eye(classes)[members.argmax(-1)].mean(0)
    probabilities = np.stack([softmax(member) for member in members]).mean(0)
    # Shares differ by at least 1 / members; probabilities, below 1, decide between equal ones only.
    result: NDArray[np.float32] = (votes + probabilities / (2 * len(members))).astype(np.float32)
    return result


def mean(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of logits or of values (N, C)."""
    result: NDArray[np.float32] = _checked(logits).mean(0)
    return result


def _checked(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    shapes = {member.shape for member in logits}
    if len(shapes) != 1:
        raise DeltatuneError(f"members of an ensemble must have logits of one shape, not {sorted(shapes)}")
    return np.stack(list(logits))


def ensemble(
    host: Host,
    names: Sequence[str],
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    how: Literal["vote", "mean"] = "vote",
    batch_size: int = 64,
    precision: str = "auto",
) -> NDArray[Any]:
    """Return the combined answers (N, C) of several adapters of one task: shares of votes, or mean logits.

    Five prompts of a task cost one model in memory (Lester et al. 2021, section 6): each row is repeated for each
    adapter within a batch. Adapters that cannot share a batch run one after another. Route and modes are restored.
    """
    if len(names) < 2:
        raise DeltatuneError(f"an ensemble takes two adapters or more, not {len(names)}")
    if how not in ("vote", "mean"):
        raise DeltatuneError(f"how={how!r}: an ensemble takes 'vote' or 'mean'")
    combine = {"vote": vote, "mean": mean}[how]
    longest = max(names, key=lambda name: positions_taken(host, name))
    encoded = ensure_encoded(host, longest, task, rows, tokenizer, labelled=False)
    if isinstance(task, LabelWords) or not all(host.adapters[name].mixes_rows for name in names):
        return combine([predict(host, name, task, encoded, tokenizer, batch_size, precision) for name in names])
    collate, bfloat16 = adapter_collator(host, longest, tokenizer, encoded), uses_bfloat16(host.model, precision)

    def member_logits(batch: dict[str, Tensor]) -> Tensor:
        repeated = {key: tensor.repeat_interleave(len(names), 0) for key, tensor in batch.items()}
        host.use(list(names) * len(read_first(batch)))
        rows = torch.stack(logits(host, repeated, bfloat16))
        return rows.view(-1, len(names), rows.shape[-1])  # (B, N, C)

    with host.using(None, training=False), torch.inference_mode():
        all_logits = map_batches(encoded, collate, max(1, batch_size // len(names)), device_of(host), member_logits)
    return combine(list(np.moveaxis(all_logits.float().cpu().numpy(), 1, 0)))
