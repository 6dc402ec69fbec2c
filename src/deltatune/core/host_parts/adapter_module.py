"""The child module `deltatune` of a base, which holds its adapters."""

from __future__ import annotations

from torch import nn

from deltatune.core.errors import DeltatuneError


def adapter_module(model: nn.Module) -> nn.ModuleDict:
    """The adapters of a base by name; made at the first call.

    While there are any, a base that transformers quantised no longer calls itself purely quantised: its Trainer
    refuses those, because nothing in them can be trained. Where the quantiser says that no gradient passes, it stays.
    """
    if not hasattr(model, "deltatune"):
        model.deltatune = nn.ModuleDict()
        if getattr(model, "is_quantized", False) and _passes_gradients(model):
            model.is_quantized = False  # type: ignore[assignment]
    children = model.deltatune
    assert isinstance(children, nn.ModuleDict)
    return children


def drop_module_(model: nn.Module) -> None:
    """Take the child module out; the base is again what it was."""
    del model.deltatune
    if getattr(model, "is_quantized", None) is False and _passes_gradients(model):
        model.is_quantized = True  # type: ignore[assignment]


def _passes_gradients(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "hf_quantizer", None), "is_trainable", False))


def refuse_sequential(model: nn.Module) -> None:
    """Raise DeltatuneError for an nn.Sequential, which would call the module of the adapters as one of its layers."""
    if isinstance(model, nn.Sequential):
        inner = next(
            ((path, part) for path, part in model.named_modules() if path and hasattr(type(part), "from_pretrained")),
            None,
        )
        advice = "" if inner is None else f"; take its part {inner[0]!r} ({type(inner[1]).__name__})"
        raise DeltatuneError(
            f"{type(model).__name__} is an nn.Sequential, which calls each of its children in turn, the adapters among "
            f"them{advice}: Host(model.get_submodule({inner[0] if inner else '...'!r}))"
        )


def refuse_peft(model: nn.Module) -> None:
    """Raise DeltatuneError for a model on which PEFT has put adapters, which a Host would freeze and not save."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()  # what is no model is for the sites to say
    theirs = next((path for path, part in parts if type(part).__module__.startswith("peft.")), None)
    if theirs is not None:
        where = f"at {theirs}" if theirs else "around it"
        raise DeltatuneError(
            f"PEFT has put adapters of its own on this model ({where}), which a Host would freeze and never save; take "
            "the model without them (model.unload()), and load their folder here: host.load(folder)"
        )
