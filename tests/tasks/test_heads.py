"""Heads: equal to transformers' own, padding on either side, initial values from the seed alone."""

import pytest
import torch
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Head, HeadConfig
from support import models

CONFIGS = [
    HeadConfig(pooling="mean", width=32, outputs=3),
    HeadConfig(pooling="cls", dense=True, width=32, outputs=3),
    HeadConfig(pooling="last", dense=True, activation="gelu", dropout=0.0, width=32, outputs=1),
    HeadConfig(pooling="pooler", width=32, outputs=2),
]


def hidden(rows=4, length=6, width=32):
    return torch.randn(rows, length, width)


def test_bert_head(tiny_bert):
    peer = tiny_bert("classify")
    head = Head(HeadConfig(pooling="pooler", width=32, outputs=models.LABELS)).eval()
    head.out.load_state_dict(peer.classifier.state_dict())
    batch = models.inputs("bert")
    output = peer.bert(**batch)
    logits = head(output.last_hidden_state, batch["attention_mask"], output.pooler_output)
    torch.testing.assert_close(logits, peer(**batch).logits, rtol=0, atol=0)


def test_roberta_head(tiny):
    peer = tiny("roberta", "classify")
    head = Head(HeadConfig(pooling="cls", dense=True, width=32, outputs=models.LABELS)).eval()
    head.dense.load_state_dict(peer.classifier.dense.state_dict())
    head.out.load_state_dict(peer.classifier.out_proj.state_dict())
    batch = models.inputs("roberta")
    state = peer.roberta(**batch).last_hidden_state
    torch.testing.assert_close(head(state, batch["attention_mask"]), peer(**batch).logits, rtol=0, atol=0)


def test_roberta_head_drops_out_at_the_same_places(tiny):
    config = tiny("roberta", "classify").config
    config.classifier_dropout = 0.4
    peer = RobertaClassificationHead(config).train()
    head = Head(HeadConfig(pooling="cls", dense=True, dropout=0.4, width=32, outputs=models.LABELS)).train()
    head.dense.load_state_dict(peer.dense.state_dict())
    head.out.load_state_dict(peer.out_proj.state_dict())
    state = hidden()
    torch.manual_seed(1)
    wanted = peer(state)
    torch.manual_seed(1)
    torch.testing.assert_close(head(state, torch.ones(4, 6)), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_side_does_not_matter(pooling):
    state = hidden(1, 5)
    head = Head(HeadConfig(pooling=pooling, width=32)).eval()
    alone = head(state, torch.ones(1, 5))
    noise = torch.randn(1, 3, 32)
    right = head(torch.cat([state, noise], 1), torch.tensor([[1] * 5 + [0] * 3]))
    left = head(torch.cat([noise, state], 1), torch.tensor([[0] * 3 + [1] * 5]))
    torch.testing.assert_close(right, alone)
    torch.testing.assert_close(left, alone)


def test_pooling_by_hand():
    state, mask = hidden(2, 4), torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    pooled = {kind: Head(HeadConfig(pooling=kind, width=32)).pool(state, mask) for kind in ("cls", "mean", "last")}
    torch.testing.assert_close(pooled["cls"], torch.stack([state[0, 0], state[1, 2]]))
    torch.testing.assert_close(pooled["last"], torch.stack([state[0, 2], state[1, 3]]))
    torch.testing.assert_close(pooled["mean"], torch.stack([state[0, :3].mean(0), state[1, 2:].mean(0)]))


def test_a_row_without_tokens_is_no_division_by_zero():
    head = Head(HeadConfig(pooling="mean", width=32)).eval()
    assert head(hidden(1, 3), torch.zeros(1, 3)).isfinite().all()


def test_initial_values_depend_on_seed_and_name_alone():
    torch.manual_seed(7)
    first = Head(CONFIGS[1], seed=3)
    torch.manual_seed(8)
    second = Head(CONFIGS[1], seed=3)
    other = Head(CONFIGS[1], seed=4)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(first.out.weight, other.out.weight)
    small = Head(HeadConfig(pooling="cls", width=32, outputs=2), seed=3)  # without the dense layer: `out` is the same
    torch.testing.assert_close(small.out.weight, first.out.weight[:2], rtol=0, atol=0)
    assert first.out.bias.eq(0).all()
    assert 0.015 < first.dense.weight.std() < 0.025


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.pooling)
def test_dropout_follows_train_and_eval(config):
    head, state, mask = Head(config), hidden(), torch.ones(4, 6)
    pooled = torch.randn(4, 32)
    head.eval()
    torch.testing.assert_close(head(state, mask, pooled), head(state, mask, pooled), rtol=0, atol=0)
    head.train()
    assert torch.equal(head(state, mask, pooled), head(state, mask, pooled)) == (config.dropout == 0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.pooling)
def test_half_precision_input_gives_float32_logits(config):
    logits = Head(config)(hidden().bfloat16(), torch.ones(4, 6), torch.randn(4, 32).bfloat16())
    assert logits.dtype == torch.float32
    assert logits.shape == (4, config.outputs)


def test_config_round_trips_and_refuses_nonsense():
    for config in CONFIGS:
        assert HeadConfig(**config.to_json()) == config
    with pytest.raises(DeltatuneError, match="did you mean 'mean'"):
        HeadConfig(pooling="meen")
    with pytest.raises(DeltatuneError, match="outputs must be at least 1"):
        HeadConfig(outputs=0)
    with pytest.raises(DeltatuneError, match="dropout must be in"):
        HeadConfig(dropout=1.0)


def test_a_base_without_pooler_is_told():
    with pytest.raises(DeltatuneError, match="no pooler"):
        Head(CONFIGS[3])(hidden(), torch.ones(4, 6))
