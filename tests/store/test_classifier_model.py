"""A classifier as one model of transformers: the heads that its class has are found on one copy of the base."""

import re

import pytest
import torch

from deltatune import Host, LoRA
from deltatune.core.errors import CannotMerge
from deltatune.store.model_saving.classifier_model import classifier_model
from deltatune.tasks.heads import Head, HeadConfig
from support import models


def hosted(kind, pooling, dense=False):
    model = models.tiny(kind, dropout=False)
    config = HeadConfig(pooling=pooling, dense=dense, outputs=3, width=model.config.hidden_size)
    host = Host(model)
    host.attach("a", LoRA(r=2), head=Head(config).eval())
    torch.nn.init.ones_(host.adapters["a"].head.out.bias)
    return host


def suggested(error):
    """The heads that an error names: (pooling, dense)."""
    return [(pooling, bool(dense)) for pooling, dense in re.findall(r"--pooling (\w+)( --dense)?", str(error.value))]


@pytest.mark.parametrize(("kind", "heads"), [("bert", [("pooler", False), ("cls", True)]), ("gpt2", [("last", False)])])
def test_a_head_that_the_class_lacks_is_refused_with_those_that_it_has(kind, heads, monkeypatch):
    host = hosted(kind, "mean")
    copies = []
    load = torch.nn.Module.load_state_dict
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda *args, **more: copies.append(1) or load(*args, **more)
    )
    with pytest.raises(CannotMerge, match="Keep it beside the merged body") as error:
        classifier_model(host, "a")
    assert suggested(error) == heads
    assert len(copies) == 1, "the base is copied once, however many heads are tried"


@pytest.mark.parametrize(
    ("kind", "pooling", "dense"), [("bert", "pooler", False), ("bert", "cls", True), ("gpt2", "last", False)]
)
def test_a_head_that_is_named_fits(kind, pooling, dense):
    host = hosted(kind, pooling, dense)
    model = classifier_model(host, "a")
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad(), host.using("a", training=False):
        outputs = host.model(tokens)
        mask = torch.ones_like(tokens)
        expected = host.adapters["a"].head(outputs[0], mask, getattr(outputs, "pooler_output", None))
        torch.testing.assert_close(model(tokens, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-4)
