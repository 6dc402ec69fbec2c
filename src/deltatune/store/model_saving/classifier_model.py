"""A classifier as one model of transformers: the base with an adapter merged into it, and the adapter's head.

The head's values go to where transformers' own class for the architecture has its classifier, and what that class then
computes is compared with the head on the base: a class that pools otherwise, or puts something else before its
classifier, is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from deltatune.core.errors import CannotMerge, DeltatuneError
from deltatune.core.host import Host
from deltatune.core.merging import difference, rounding_tolerance, verification_inputs
from deltatune.store.model_saving.media_classifier import (
    body_of,
    identity_projector_,
    media_batches,
    media_class,
    pooled_mask,
    widen_projector_,
)

PADDING = 3
"""Tokens of the second row that are padding in the comparison."""


def classifier_model(host: Host, name: str) -> PreTrainedModel:
    """The base as it is now, with the head of adapter `name`, as transformers' class for its task, in eval mode.

    The adapter must be merged into the base. Labels and the kind of the problem are put into the config, for pipelines.
    Raises CannotMerge where transformers has no such class, or where that would compute something else.
    """
    head: Any = host.adapters[name].head
    config: Any = getattr(head, "config", None)
    model: PreTrainedModel | None = None
    placed: set[str] = set()
    lent: list[tuple[Tensor, Tensor]] = []
    try:
        if not isinstance(host.model, PreTrainedModel) or not hasattr(config, "pooling"):
            raise _Unfit(f"{type(host.model).__name__} with a {type(head).__name__} has no such class")
        if host.sites.facts.encoder_decoder:
            raise _Unfit("the class of an encoder-decoder reads its own end token")
        task = host.adapters[name].extra.get("task")
        model = _empty(host.model, head, task if isinstance(task, Mapping) else {})
        placed = _copy_base_(host.model, model)
        lent = [(tensor, tensor.clone()) for tensor in _lent(model)]
        _place_(model, head, placed)
        with host.using(None, training=False):  # what is merged is in the weights
            states = _base_states(host, model)
            _compare(head, states, model, _answers(model, states))
    except _Unfit as error:
        fitting = [] if model is None else _fitting(host, head, model, placed, lent)
        raise CannotMerge(_refusal(head, str(error), fitting)) from None
    return model


class _Unfit(Exception):
    """Why a head cannot be part of a model of transformers."""


def _refusal(head: Any, reason: str, fitting: Sequence[str]) -> str:
    config = getattr(head, "config", None)
    pooling = getattr(config, "pooling", None)
    shape = f" (pooling={pooling!r}, dense={getattr(config, 'dense', None)})" if pooling else ""
    fix = f", or train with a head that this class has: {' or '.join(fitting)}" if fitting else ""
    return (
        f"the head{shape} cannot be part of the model: {reason}. Keep it beside the merged body, as `deltatune merge` "
        f"does in FOLDER/adapter{fix}"
    )


@torch.no_grad()
def _fitting(
    host: Host, head: Any, model: PreTrainedModel, placed: set[str], lent: Sequence[tuple[Tensor, Tensor]]
) -> list[str]:
    """The heads that transformers' class has, as options: each is tried on the model, which is not used any more.

    The base is read once. A try changes the model's own head and what it lent of the base; what the model then says
    does not depend on the head's own pooling and activation.
    """
    if head.config.pooling == "none":
        return []
    try:
        with host.using(None, training=False):
            states = _base_states(host, model)
    except _Unfit:
        return []
    fitting, said = [], {}
    layers = ((False, "tanh"), (True, "tanh"), (True, "gelu"))
    for pooling, (dense, activation) in itertools.product(("pooler", "cls", "mean", "last"), layers):
        config = replace(head.config, pooling=pooling, dense=dense, activation=activation)
        if (pooling, dense) == (head.config.pooling, head.config.dense) and (not dense or config == head.config):
            continue
        other = type(head)(config, seed=0).to(head.out.weight.device).eval()
        nn.init.ones_(other.out.bias)  # a class without one is no answer
        pool_as_(model.config, config)
        key = dense, getattr(model.config, "classifier_pooling", None)
        try:
            if key not in said:
                for tensor, value in lent:
                    tensor.copy_(value)
                _place_(model, other, placed)
                said[key] = _answers(model, states)
            _compare(other, states, model, said[key])
        except (_Unfit, DeltatuneError):  # no pooler, another pooling
            continue
        options = f"--pooling {pooling}{' --dense' if dense else ''}"
        fitting.append(options if activation == "tanh" else f"{options} with activation='gelu' (in Python)")
    return fitting


def _empty(base: PreTrainedModel, head: Any, task: Mapping[str, Any]) -> PreTrainedModel:
    """A model of transformers' class for the task, its values yet to be set, on the base's device and in its dtype."""
    kind = str(task.get("task", ""))
    auto: Any = media_class(base) or AutoModelForSequenceClassification
    if head.config.pooling == "none":
        auto = AutoModelForQuestionAnswering if kind == "span" else AutoModelForTokenClassification
    config = deepcopy(base.config)
    describe_(config, head, kind, task)
    widen_projector_(config, head.config.width)
    try:
        model: Any = auto.from_config(config)
    except ValueError as error:
        raise _Unfit(f"transformers has no {auto.__name__} for {config.model_type}") from error
    like = next(parameter for parameter in base.parameters() if parameter.is_floating_point())
    done: PreTrainedModel = model.to(device=like.device, dtype=like.dtype).eval()
    return done


def describe_(config: PretrainedConfig, head: Any, kind: str, task: Mapping[str, Any]) -> None:
    """Labels, problem type and pooling in a config."""
    labels = [str(label) for label in task.get("tags" if kind == "tag" else "labels") or ()]
    outputs = head.config.outputs
    if len(labels) != outputs or len(set(labels)) < outputs:
        labels = [f"LABEL_{index}" for index in range(outputs)]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if head.config.pooling != "none":
        problem = {"many": "multi_label_classification"}.get(kind, "single_label_classification")
        config.problem_type = "regression" if outputs == 1 else problem  # type: ignore[assignment]
    pool_as_(config, head.config)


def pool_as_(config: PretrainedConfig, head: Any) -> None:
    """Put a head's pooling into a config that has a choice: ModernBERT, UltraBERT, EuroBERT (which calls cls bos)."""
    if hasattr(config, "classifier_pooling") and head.pooling in ("cls", "mean"):
        first = "bos" if config.model_type == "eurobert" else "cls"
        config.classifier_pooling = first if head.pooling == "cls" else "mean"


def _copy_base_(base: Any, model: PreTrainedModel) -> set[str]:
    """Copy the values of the base's body. Returns the names of the model's tensors that have their value."""
    source = getattr(base, base.base_model_prefix, base)
    name, target = body_of(model, base)
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("deltatune.")}
    missing, unexpected = target.load_state_dict(state, strict=False)
    wrong = [key for key in (*missing, *unexpected) if "pooler" not in key.split(".")]
    if wrong:
        raise CannotMerge(f"{type(model).__name__} has another body than {type(base).__name__}: {', '.join(wrong[:5])}")
    return {f"{name}.{key}" for key in target.state_dict() if key not in missing}


def _lent(model: nn.Module) -> list[Tensor]:
    """The tensors of the base that a head's values may stand in for: those of its pooler and of its last LayerNorm."""
    pooler = [module for path, module in model.named_modules() if path.endswith("pooler.dense")]
    return [tensor for module in (*pooler, *_norms(model)[-1:]) for tensor in module.parameters()]


def _norms(model: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm) and module.bias is not None]


@torch.no_grad()
def _place_(model: PreTrainedModel, head: Any, placed: set[str]) -> None:
    """Put the head's maps where the model has its own. Raises _Unfit where there is no place for them."""
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    projector = None if head.config.dense else identity_projector_(model)
    free = {p: module for p, module in linears.items() if f"{p}.weight" not in placed and p != projector}
    last = [
        module for path, module in free.items() if module.weight.shape == head.out.weight.shape and _last(path, free)
    ]
    dense = [module for path, module in free.items() if not any(module is other for other in last)]
    pooler = next((module for path, module in linears.items() if path.endswith("pooler.dense")), None)
    if head.config.dense and not dense and pooler is not None:
        dense = [pooler]
    kind = type(model).__name__
    if len(last) != 1:
        raise _Unfit(f"no one map of {kind} is its classifier")
    if len(dense) != head.config.dense or any(m.weight.shape != head.dense.weight.shape for m in dense):
        has = "a layer" if dense else "no layer"
        raise _Unfit(f"{kind} has {has} between its pooling and its classifier")
    for module, own in ((last[0], head.out), *((module, head.dense) for module in dense)):
        module.weight.copy_(own.weight)
        if module.bias is not None:
            module.bias.copy_(own.bias)
        elif own.bias.any():
            _absorb_bias_(model, own, head)


def _last(path: str, free: Mapping[str, nn.Module]) -> bool:
    """Whether a map is the one behind all others: by its name, where a layer before it has the same shape."""
    return path == list(free)[-1] or len(free) == 1


def _absorb_bias_(model: PreTrainedModel, out: nn.Linear, head: Any) -> None:
    """Let the shift of the body's last LayerNorm give a classifier without a bias the bias b: β' = β + W⁺ b."""
    norms = _norms(model)
    if not norms or torch.linalg.matrix_rank(out.weight) < len(out.bias):
        raise _Unfit(f"the classifier of {type(model).__name__} has no bias, and this one has")
    shift = torch.linalg.lstsq(out.weight.double(), out.bias.double()[:, None]).solution[:, 0]
    norms[-1].bias.add_(shift.to(norms[-1].bias))


@dataclass(frozen=True)
class _States:
    """What the base makes of a batch: all that a head reads."""

    batch: Mapping[str, Tensor]
    hidden: Tensor
    mask: Tensor
    pooled: Tensor | None


@torch.no_grad()
def _base_states(host: Host, model: PreTrainedModel) -> list[_States]:
    """States on tokens with and without padding. Raises _Unfit where the base's inputs are not known."""
    found = []
    for batch in _batches(host, model):
        outputs = host.model(**batch, output_hidden_states=True)
        hidden = getattr(outputs, "last_hidden_state", None)
        hidden = outputs.hidden_states[-1] if hidden is None else hidden
        pooled = getattr(outputs, "pooler_output", None)
        found.append(_States(batch, hidden, pooled_mask(host.model, hidden, batch), pooled))
    return found


def _batches(host: Host, model: PreTrainedModel) -> list[dict[str, Tensor]]:
    batch = verification_inputs(host.model, host.sites.facts)
    if batch is None:
        raise _Unfit("the inputs of this architecture are not known, so nothing could be verified")
    if "input_ids" not in batch:
        return media_batches(host.model, batch)
    padded = {key: tensor.clone() for key, tensor in batch.items()}
    padded["attention_mask"][1, -PADDING:] = 0
    pad = getattr(model.config, "pad_token_id", None)
    if not isinstance(pad, int):  # transformers takes single rows only
        return [{key: tensor[:1] for key, tensor in inputs.items()} for inputs in (batch, padded)]
    for inputs in (batch, padded):
        real = inputs["attention_mask"].bool()
        inputs["input_ids"][real & (inputs["input_ids"] == pad)] = (pad + 1) % host.sites.facts.vocabulary
        inputs["input_ids"][~real] = pad
    return [batch, padded]


@torch.no_grad()
def _answers(model: PreTrainedModel, states: Sequence[_States]) -> list[Tensor]:
    return [_answer(model(**each.batch)) for each in states]


@torch.no_grad()
def _compare(head: Any, states: Sequence[_States], model: PreTrainedModel, answers: Sequence[Tensor]) -> None:
    """Raise _Unfit unless the model's answers, (B, C) or (B, T, C) each, are what the head makes of the states."""
    for each, found in zip(states, answers, strict=True):
        expected = head(each.hidden, each.mask, each.pooled).float()
        real = (
            each.batch["attention_mask"].bool() if head.config.pooling == "none" else torch.ones(len(expected)).bool()
        )
        worst = difference(expected[real.to(expected.device)], found[real.to(found.device)])
        if not worst <= rounding_tolerance(expected, next(model.parameters()).dtype):
            kind = type(model).__name__
            raise _Unfit(f"{kind} pools otherwise or changes the states first: logits differ by {worst:.2g}")


def _answer(outputs: Any) -> Tensor:
    """The logits of a model; of question answering start and end side by side."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).float()
    logits: Tensor = outputs.logits
    return logits.float()
