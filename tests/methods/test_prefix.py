"""Prefix tuning: a trunk for each kind of attention, computed once, dropout, starting from words."""

import copy
from dataclasses import replace

import pytest
import torch

from deltatune import DeltatuneError, Host, Prefix, PTuningV2, UniPELT, parse, with_token_ids
from deltatune.core.attention_call import AttentionCall
from deltatune.methods.prompts.prefix import Trunk, Trunks
from deltatune.testing.fixtures import attach, forward, make_host, outputs, probe_loss
from support import models


def gradients(host, batch):
    host.model.zero_grad()
    probe_loss(list(forward(host.model, batch))).backward()
    return {name: p.grad.clone() for name, p in host.trainable("a")}


# ---- trunks


def test_encoder_decoders_have_three_trunks_that_share_nothing():
    host, batch = make_host("t5"), models.inputs("t5")
    method = Prefix(length=3, mlp=5)
    trunks = host.attach("a", method).shared["prefix"]
    assert isinstance(trunks, Trunks)
    assert sorted(trunks.of) == ["decoder_attn", "decoder_cross", "encoder_attn"]
    D, layers, width = 32, 2, 32
    assert method.count(host.sites) == 3 * (3 * D + D * 5 + 5 + layers * 2 * width * (5 + 1))
    # Each reaches its own attention alone.
    with torch.no_grad():
        keys = {key: delta.prefix()[0].clone() for key, _, delta in host.adapters["a"].entries()}
        before = outputs(host, batch)
        trunks.of["decoder_cross"].embedding.add_(1.0)
        changed = {key for key, _, d in host.adapters["a"].entries() if not torch.equal(d.prefix()[0], keys[key])}
    assert changed == {key for key in keys if ".cross." in key}
    assert len(changed) == layers
    assert not torch.equal(outputs(host, batch), before)


def test_one_kind_of_attention_has_one_trunk():
    host = make_host("t5")
    assert isinstance(host.attach("a", Prefix(length=3, mlp=5, sites="*.cross.kv")).shared["prefix"], Trunk)


def test_a_forward_computes_each_trunk_once(monkeypatch):
    host, batch = make_host("t5"), models.inputs("t5")
    host.attach("a", Prefix(length=3, mlp=5))
    computed, count = Trunk.computed, []
    monkeypatch.setattr(Trunk, "computed", lambda trunk: count.append(trunk) or computed(trunk))
    for _ in range(2):
        count.clear()
        forward(host.model, batch)
        assert len(count) == len(set(map(id, count))) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_either_kind_has_the_same_gradients(reentrant):
    host, batch = make_host("gpt2"), models.inputs("gpt2")
    host.attach("a", Prefix(length=3, mlp=5))
    host.model.train()
    host.model.config.use_cache = False
    wanted = gradients(host, batch)
    enable = "activation_checkpointing_enable"  # transformers 5.0 knows the older name alone
    enable = enable if hasattr(host.model, enable) else "gradient_checkpointing_enable"
    getattr(host.model, enable)({"use_reentrant": reentrant})
    if reentrant:  # needs an input with a gradient
        host.model.enable_input_require_grads()
    for name, gradient in gradients(host, batch).items():
        assert torch.allclose(gradient, wanted[name], atol=1e-6), name


def test_what_a_forward_left_is_not_used_after_a_step():
    host, batch = make_host("bert"), models.inputs("bert")
    adapter = host.attach("a", Prefix(length=3, mlp=5))
    gradients(host, batch)
    with torch.no_grad():
        adapter.shared["prefix"].embedding.mul_(2)
    delta = next(adapter.entries())[2]
    live = delta.prefix()[0]  # outside of a forward of the model, with gradients
    assert torch.equal(live, delta.without_reparametrisation().keys)
    live.sum().backward()
    assert copy.deepcopy(adapter).shared["prefix"].cached is None, "a copy has no graph"


# ---- dropout


def test_p_tuning_v2():
    assert PTuningV2() == Prefix(length=16, dropout=0.1)
    assert parse("PTuningV2(length=4, mlp=5)") == Prefix(length=4, mlp=5, dropout=0.1)
    host = make_host("bert")
    adapter = host.attach("a", PTuningV2(length=64))
    assert len(list(adapter.entries())) == 2, "every layer"
    spread = torch.cat([p.detach().flatten() for _, p in host.trainable("a")]).std()
    assert 0.019 < spread < 0.021


@pytest.mark.parametrize("mlp", [0, 5])
def test_dropout_is_training_s_alone_and_each_row_s_own(mlp):
    host, plain = make_host("bert"), make_host("bert")
    host.attach("a", Prefix(length=8, mlp=mlp, dropout=0.5))
    plain.attach("a", Prefix(length=8, mlp=mlp))
    batch = {name: tensor[:1].repeat(2, 1) for name, tensor in models.inputs("bert", padding="none").items()}
    assert torch.equal(outputs(host, batch), outputs(plain, batch))
    host.model.train()
    first, second = host.model(**batch)[0]
    assert not torch.allclose(first, second, atol=1e-4), "two equal rows dropped the same"
    host.remove_reparametrisation_("a")
    first, second = host.model(**batch)[0]
    assert not torch.allclose(first, second, atol=1e-4)
    host.model.eval()
    assert torch.allclose(outputs(host, batch), outputs(plain, batch), atol=1e-6)


def test_dropout_keeps_the_mean():
    host = make_host("gpt2")
    delta = next(host.attach("a", Prefix(length=2, dropout=0.25)).entries())[2].train()
    zeros = torch.zeros(4000, 4, 1, 8)
    with torch.no_grad():
        keys, _ = delta.placed(AttentionCall(None, None, zeros, zeros, zeros, None, {}))
    given = delta.keys.detach().view(2, 4, 8).transpose(0, 1)  # (H, P, K)
    assert torch.allclose(keys.mean(0), given, atol=6 * float(given.abs().max()) * (0.25 / 0.75 / 4000) ** 0.5)
    assert 0.24 < float((keys == 0).float().mean()) < 0.26


def test_dropping_everything_is_refused():
    with pytest.raises(DeltatuneError, match="below 1"):
        Prefix(dropout=1.0)


# ---- words

WORDS = (7, 21, 9, 40)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_a_prefix_of_words_is_as_if_they_were_read_before(kind, attention):
    """Where tokens know only the past, keys and values are all that a text leaves behind."""
    model = models.tiny(kind)
    model.set_attn_implementation(attention)
    host, ids = Host(model), torch.tensor([[11, 12, 13], [14, 15, 16]])
    both = torch.cat([torch.tensor([WORDS]).repeat(2, 1), ids], 1)
    wanted = outputs(host, {"input_ids": both})[:, len(WORDS) :]
    plain = outputs(host, {"input_ids": ids})
    host.attach("a", Prefix(length=len(WORDS), ids=WORDS))
    assert torch.allclose(outputs(host, {"input_ids": ids}), wanted, atol=2e-5)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    host.use(None)
    assert model.config._attn_implementation == attention
    assert torch.equal(outputs(host, {"input_ids": ids}), plain)


@pytest.mark.parametrize("length", [2, 4, 7])
def test_words_are_cut_or_repeated(length):
    host, other = make_host("gpt2"), make_host("gpt2")
    found = host.attach("a", Prefix(length=length, ids=WORDS)).tensors()
    wanted = other.attach("a", Prefix(length=length, ids=(*WORDS, *WORDS)[:length])).tensors()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_encoder_decoders_read_words_on_both_sides():
    host = make_host("t5", "lm")
    with torch.no_grad():
        start = torch.tensor([[host.model.config.decoder_start_token_id, *WORDS]])
        cache = host.model(input_ids=torch.tensor([WORDS]), decoder_input_ids=start, use_cache=True).past_key_values
    tensors = host.attach("a", Prefix(length=4, ids=WORDS)).tensors()
    for layer in range(2):
        own, cross = cache.self_attention_cache.layers[layer], cache.cross_attention_cache.layers[layer]
        for what in ("keys", "values"):
            for place, kept in (("attn", getattr(own, what)[:, :, 1:]), ("cross", getattr(cross, what))):
                found = tensors[f"prefix.decoder.layers.{layer}.{place}.kv.{what}"]
                assert torch.allclose(found, kept[0].transpose(0, 1).flatten(1), atol=1e-6)
        encoder = tensors[f"prefix.encoder.layers.{layer}.attn.kv.keys"]
        assert not torch.allclose(encoder, tensors[f"prefix.decoder.layers.{layer}.cross.kv.keys"], atol=1e-3)


@pytest.mark.parametrize("other", ["PiSSA(r=4)", "Prefix(length=3)", "Prompt(length=4)", "BitFit()", "Full()"])
def test_other_adapters_do_not_change_what_words_are(other):
    hosts = [make_host("bert", "classify"), make_host("bert", "classify")]
    attach(hosts[1], "other", parse(other))
    hosts[1].model.train()
    live = hosts[1].route
    first, second = (host.attach("a", Prefix(length=4, ids=WORDS)).tensors() for host in hosts)
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("prefix."))
    assert hosts[1].route is live
    assert hosts[1].model.training
    assert all(module.training for module in hosts[1].model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_an_mlp_is_fitted_to_the_words(kind):
    wanted = make_host(kind).attach("a", Prefix(length=4, ids=WORDS)).tensors()

    def error(method):
        host = make_host(kind)
        adapter = host.attach("a", method)
        assert all(p.requires_grad and p.grad is None for _, p in host.trainable("a"))
        tensors = adapter.without_reparametrisation().tensors()
        return sum(float((tensors[name] - wanted[name]).square().sum()) for name in wanted)

    assert error(Prefix(length=4, mlp=256, ids=WORDS)) < 0.02 * error(Prefix(length=4, mlp=256))


def test_a_stored_prefix_of_words_is_what_was_trained(tmp_path):
    host, again = make_host("gpt2"), make_host("gpt2")
    attach(host, "a", Prefix(length=4, mlp=8, ids=WORDS))
    host.save("a", tmp_path / "a", training=True)
    again.load(tmp_path / "a")
    batch = models.inputs("gpt2")
    assert torch.allclose(outputs(host, batch), outputs(again, batch), atol=1e-6)


def test_words_become_ids_by_the_tokenizer():
    tokenizer, host = models.tiny_tokenizer(), make_host("gpt2")
    method = Prefix(length=4, words="good film")
    found = with_token_ids(method + UniPELT(method), tokenizer)
    ids = tuple(tokenizer("good film", add_special_tokens=False)["input_ids"])
    assert len(ids) == 2
    assert found == replace(method, ids=ids) + UniPELT(replace(method, ids=ids))
    assert parse(repr(found)) == found
    host.attach("a", found)
    with pytest.raises(DeltatuneError, match=r"no token ids yet on this GPT2Model; attach deltatune\.with_token_ids"):
        host.attach("b", method)
    with pytest.raises(DeltatuneError, match="makes no tokens"):
        with_token_ids(Prefix(words=" "), tokenizer)


def test_ids_that_the_model_does_not_have_are_refused():
    host, batch = make_host("gpt2"), models.inputs("gpt2")
    before = outputs(host, batch)
    with pytest.raises(DeltatuneError, match="5000 is not a token id of this GPT2Model, which has 0 to"):
        host.attach("a", Prefix(ids=(5000,)))
    assert not host.adapters
    assert torch.equal(outputs(host, batch), before)
