"""A classifier as one model of transformers: the base with an adapter merged into it, and the adapter's head.

The head's values go to where transformers' own class for the architecture has its classifier, and what that class then
computes is compared with the head on the base: a class that pools otherwise, or puts something else before its
classifier, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
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

from deltatune.core.errors import CannotMerge
from deltatune.core.host import Host
from deltatune.core.merging import difference, rounding_tolerance, verification_inputs

PADDING = 3
"""Tokens of the second row that are padding in the comparison."""


def classifier_model(host: Host, name: str) -> PreTrainedModel:
    """The base as it is now, with the head of adapter `name`, as transformers' class for its task, in eval mode.

    The adapter must be merged into the base. Labels and the kind of the problem are put into the config, for pipelines.
    Raises CannotMerge where transformers has no such class, or where that would compute something else.
    """
    head: Any = host.adapters[name].head
    config: Any = getattr(head, "config", None)
    if not isinstance(host.model, PreTrainedModel) or not hasattr(config, "pooling"):
        raise CannotMerge(_refusal(head, f"{type(host.model).__name__} with a {type(head).__name__} has no such class"))
    if host.sites.facts.encoder_decoder:
        raise CannotMerge(_refusal(head, "the class of an encoder-decoder reads its own end token"))
    task = host.adapters[name].extra.get("task")
    task = task if isinstance(task, Mapping) else {}
    model = _empty(host.model, head, task)
    placed = _copy_base_(host.model, model)
    _copy_head_(model, head, placed)
    with host.using(None, training=False):  # what is merged is in the weights
        _verify(host, head, model)
    return model


def _refusal(head: Any, reason: str) -> str:
    config = getattr(head, "config", None)
    pooling = getattr(config, "pooling", None)
    shape = f" (pooling={pooling!r}, dense={getattr(config, 'dense', None)})" if pooling else ""
    return (
        f"the head{shape} cannot be part of the model: {reason}. Keep it beside the merged body, as `deltatune merge` "
        "does in FOLDER/adapter, or train with a head that transformers has (--pooling, --dense): for BERT "
        "pooling='pooler', or pooling='cls' with dense=True; for RoBERTa the latter; for GPT-2 pooling='last'"
    )


def _empty(base: PreTrainedModel, head: Any, task: Mapping[str, Any]) -> PreTrainedModel:
    """A model of transformers' class for the task, its values yet to be set, on the base's device and in its dtype."""
    kind = str(task.get("task", ""))
    auto: Any = AutoModelForSequenceClassification
    if head.config.pooling == "none":
        auto = AutoModelForQuestionAnswering if kind == "span" else AutoModelForTokenClassification
    config = deepcopy(base.config)
    describe_(config, head, kind, task)
    try:
        model: Any = auto.from_config(config)
    except ValueError as error:
        raise CannotMerge(_refusal(head, f"transformers has no {auto.__name__} for {config.model_type}")) from error
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
    if hasattr(config, "classifier_pooling") and head.config.pooling in ("cls", "mean"):
        config.classifier_pooling = head.config.pooling


def _copy_base_(base: PreTrainedModel, model: PreTrainedModel) -> set[str]:
    """Copy the values of the base's body. Returns the names of the model's tensors that have their value."""
    source = getattr(base, base.base_model_prefix, base)
    target = getattr(model, model.base_model_prefix)
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("deltatune.")}
    missing, unexpected = target.load_state_dict(state, strict=False)
    wrong = [key for key in (*missing, *unexpected) if "pooler" not in key.split(".")]
    if wrong:
        raise CannotMerge(f"{type(model).__name__} has another body than {type(base).__name__}: {', '.join(wrong[:5])}")
    return {f"{model.base_model_prefix}.{key}" for key in target.state_dict() if key not in missing}


@torch.no_grad()
def _copy_head_(model: PreTrainedModel, head: Any, placed: set[str]) -> None:
    """Put the head's maps where the model has its own."""
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    free = {path: module for path, module in linears.items() if f"{path}.weight" not in placed}
    last = [
        module for path, module in free.items() if module.weight.shape == head.out.weight.shape and _last(path, free)
    ]
    dense = [module for path, module in free.items() if not any(module is other for other in last)]
    pooler = next((module for path, module in linears.items() if path.endswith("pooler.dense")), None)
    if head.config.dense and not dense and pooler is not None:
        dense = [pooler]
    kind = type(model).__name__
    if len(last) != 1:
        raise CannotMerge(_refusal(head, f"no one map of {kind} is its classifier"))
    if len(dense) != head.config.dense or any(m.weight.shape != head.dense.weight.shape for m in dense):
        has = "a layer" if dense else "no layer"
        raise CannotMerge(_refusal(head, f"{kind} has {has} between its pooling and its classifier"))
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
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm) and module.bias is not None]
    if not norms or torch.linalg.matrix_rank(out.weight) < len(out.bias):
        raise CannotMerge(_refusal(head, f"the classifier of {type(model).__name__} has no bias, and this one has"))
    shift = torch.linalg.lstsq(out.weight.double(), out.bias.double()[:, None]).solution[:, 0]
    norms[-1].bias.add_(shift.to(norms[-1].bias))


@torch.no_grad()
def _verify(host: Host, head: Any, model: PreTrainedModel) -> None:
    """Raise CannotMerge unless the model computes what the head does, on tokens with and without padding."""
    batch = verification_inputs(host.model, host.sites.facts)
    if batch is None or "input_ids" not in batch:
        raise CannotMerge(_refusal(head, "the inputs of this architecture are not known, so nothing could be verified"))
    padded = {key: tensor.clone() for key, tensor in batch.items()}
    padded["attention_mask"][1, -PADDING:] = 0
    pad = getattr(model.config, "pad_token_id", None)
    rows = slice(None) if isinstance(pad, int) else slice(0, 1)  # without one, transformers takes single rows only
    for inputs in (batch, padded):
        if isinstance(pad, int):
            real = inputs["attention_mask"].bool()
            inputs["input_ids"][real & (inputs["input_ids"] == pad)] = (pad + 1) % host.sites.facts.vocabulary
            inputs["input_ids"][~real] = pad
        chosen = {key: tensor[rows] for key, tensor in inputs.items()}
        expected, found = _logits(host.model, head, chosen), _answer(model(**chosen))
        real = chosen["attention_mask"].bool() if head.config.pooling == "none" else torch.ones(len(expected)).bool()
        worst = difference(expected[real.to(expected.device)], found[real.to(found.device)])
        if not worst <= rounding_tolerance(expected, next(model.parameters()).dtype):
            reason = f"{type(model).__name__} pools otherwise or changes the states first: logits differ by {worst:.2g}"
            raise CannotMerge(_refusal(head, reason))


def _logits(base: Any, head: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """What the head gives on the base, in float32: (B, C) or (B, T, C)."""
    outputs = base(**batch, output_hidden_states=True)
    states = getattr(outputs, "last_hidden_state", None)
    states = outputs.hidden_states[-1] if states is None else states
    logits: Tensor = head(states, batch["attention_mask"], getattr(outputs, "pooler_output", None))
    return logits.float()


def _answer(outputs: Any) -> Tensor:
    """The logits of a model; of question answering start and end side by side."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).float()
    logits: Tensor = outputs.logits
    return logits.float()
