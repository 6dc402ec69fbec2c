"""Bottlenecks and their kin against their papers' formulas, written out in plain torch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from deltatune import Bottleneck, DeltatuneError, Host, parse
from deltatune.methods.adapters.adapterdrop import AdapterDrop, RobustAdapterDrop
from deltatune.methods.adapters.bottleneck import TwoLayer
from deltatune.methods.adapters.compacter import PHM, Compacter, CompacterPlusPlus, SharedKroneckerFactors
from deltatune.methods.adapters.fusion import AdapterFusion, load_members_
from deltatune.methods.representations.reft import DiReFT, LowRankIntervention, ReFT
from deltatune.training import train
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors

BERT_BASE = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def attached(kind, method, head=None, **config):
    """A Host with the method's adapter, its tensors moved off their initial values."""
    host = Host(models.tiny(kind, head, dropout=False, **config))
    adapter = host.attach("a", method)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return host, adapter


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- bottlenecks


@pytest.mark.parametrize(
    ("text", "each", "total"), [("Houlsby(64, norms=False)", 99_136, 2_379_264), ("Pfeiffer(48)", 74_544, 894_528)]
)
def test_bottleneck_counts_of_bert_base(text, each, total):
    method, sites = parse(text), Host(models.tiny("bert", **BERT_BASE)).sites
    assert method.cost(sites["layers.0.ffn"]) == each
    assert method.count(sites) == total


def test_dropout_acts_behind_the_activation_in_training_only():
    delta = TwoLayer(6, 6, 50, "parallel", "relu", 2.0, "identity", dropout=0.5)
    torch.nn.init.zeros_(delta.down)
    torch.nn.init.ones_(delta.down_bias)
    torch.nn.init.ones_(delta.up)
    torch.nn.init.zeros_(delta.up_bias)
    x = torch.zeros(4, 6)
    torch.testing.assert_close(delta.eval()(x, x), torch.full((4, 6), 100.0))
    torch.manual_seed(0)
    out = delta.train()(x, x)
    assert (out % 4 == 0).all()  # each of 50 units is 0 or 2, times s = 2
    assert not (out == 100).all()
    assert (out[:, :1] == out).all()  # not behind U


def test_a_learned_scale_starts_at_one_and_multiplies():
    host, adapter = attached("bert", Bottleneck(size=3, form="parallel", scale="learned"))
    delta = adapter.deltas["bottleneck/layers/1/ffn"]
    assert Bottleneck(size=3, scale="learned").build(host.sites["layers.0.ffn"]).scale == 1
    x = normal(2, 32)
    change = F.linear(torch.relu(F.linear(x, delta.down, delta.down_bias)), delta.up, delta.up_bias)
    torch.testing.assert_close(delta(x, x), delta.scale * change)
    assert adapter.count == Bottleneck(size=3, form="parallel").count(host.sites) + 2


# ---- Compacter


def kron_sum(A, s, t):
    """H (in, out) with torch.kron, as the paper writes it."""
    return sum(torch.kron(A[i], s[i] @ t[i]) for i in range(len(A)))


@pytest.mark.parametrize(("n", "width_in", "width_out"), [(4, 16, 8), (4, 8, 16), (3, 6, 9), (1, 5, 2)])
def test_phm_is_the_sum_of_kronecker_products(n, width_in, width_out):
    phm, A = PHM(width_in, width_out, n).double(), normal(n, n, n).double()
    with torch.no_grad():
        phm.s.copy_(normal(*phm.s.shape, seed=1))
        phm.t.copy_(normal(*phm.t.shape, seed=2))
    x = normal(2, 3, width_in, seed=3).double()
    torch.testing.assert_close(phm(x, A), x @ kron_sum(A, phm.s, phm.t))


def test_phm_counts():
    """A11: factors 768 + 24, bias 24, one rule of 64 for all."""
    phm = PHM(768, 24, 4)
    assert phm.s.numel() == 768
    assert phm.t.numel() == 24
    assert SharedKroneckerFactors(4).A.numel() == 64
    sites = Host(models.tiny("bert", **BERT_BASE)).sites
    assert Compacter(norms=False).cost(sites["layers.0.ffn"]) == 768 + 24 + 24 + 24 + 768 + 768
    assert Compacter(norms=False).count(sites) == 64 + 24 * (2 * (768 + 24) + 24 + 768)


def test_compacter_is_the_formula():
    _, adapter = attached("bert", Compacter(size=8, norms=False, activation="gelu_new"))
    A = adapter.tensors()["shared.compacter.A"]
    delta, h = adapter.deltas["compacter/layers/1/attn"], normal(2, 5, 32)
    D, U = (kron_sum(A, part.s, part.t) for part in (delta.down, delta.up))
    wanted = F.gelu(h @ D + delta.down_bias, approximate="tanh") @ U + delta.up_bias
    torch.testing.assert_close(delta(h, h), wanted)
    assert len([site for site in adapter.sites if site.endswith((".attn", ".ffn"))]) == 4


def test_all_compacter_layers_have_one_rule_and_its_gradient():
    host, adapter = attached("t5", Compacter(size=4, norms=False))
    rules = {id(delta.rule[0]) for _, _, delta in adapter.entries()}
    assert rules == {id(adapter.shared["compacter"])}
    host.model(**models.inputs("t5"))[0].square().sum().backward()
    assert adapter.shared["compacter"].A.grad.abs().min() > 0


def test_compacter_plus_plus_is_after_the_ffn_alone():
    _, adapter = attached("gpt2", CompacterPlusPlus())
    assert {site.name for _, site, _ in adapter.entries() if site.kind != "norm"} == {"layers.0.ffn", "layers.1.ffn"}
    assert (CompacterPlusPlus().label, Compacter().label) == ("Compacter++", "Compacter")


def test_compacter_sizes_are_multiples_of_n():
    assert Compacter().sized(1).size == 4
    assert Compacter().sized(9).size == 12
    with pytest.raises(DeltatuneError, match=r"multiple of n=4, such as 8 or 12"):
        Compacter(size=10)
    with pytest.raises(DeltatuneError, match=r"width 32 .* is not a multiple of n=3; choose n among 1, 2, 4, 8, 16"):
        Host(models.tiny("bert")).attach("a", Compacter(n=3))


# ---- AdapterDrop


def entering(host):
    """Whether the hidden state that entered each block in the last forward has a graph below it."""
    seen, blocks = [], host.model.get_submodule(host.sites["layers.0.residual"].module.rpartition(".")[0])
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    return seen


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("drop", [0, 1, 3])
def test_specialised_adapters_begin_above_and_so_does_the_graph(kind, drop):
    host = Host(models.tiny(kind, num_hidden_layers=4))
    adapter = host.attach("a", AdapterDrop(size=4, drop=drop))
    seen = entering(host)
    host.model.train()(**models.inputs(kind))[0].sum().backward()
    assert {site.layer for _, site, _ in adapter.entries()} == set(range(drop, 4))
    assert seen == [layer > drop for layer in range(4)]
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_robust_training_draws_how_many_are_left_out_each_step(kind):
    host = Host(models.tiny(kind, num_hidden_layers=4))
    adapter = host.attach("a", RobustAdapterDrop(size=4))
    seen, drawn = entering(host), []
    host.model.train()
    torch.manual_seed(0)
    for _ in range(200):
        seen.clear()
        adapter.zero_grad()
        host.model(**models.inputs(kind))[0].sum().backward()
        k = adapter.shared["adapterdrop"].dropped(4)
        assert seen == [layer > k for layer in range(4)]
        with_gradient = {site.layer for _, site, delta in adapter.entries() if delta.up.grad is not None}
        assert with_gradient == set(range(k, 4))
        drawn.append(k)
    assert all(30 <= drawn.count(k) <= 70 for k in range(4)), [drawn.count(k) for k in range(4)]


def test_a_robust_adapter_in_use_leaves_out_what_its_field_says():
    batch = models.inputs("bert")
    states, outputs = {}, {}
    for drop in (0, 1, 2):
        host, adapter = attached("bert", RobustAdapterDrop(size=4, drop=drop), num_hidden_layers=3)
        states[drop] = adapter.tensors()
        outputs[drop] = host.model(**batch)[0]
        special = Host(models.tiny("bert", dropout=False, num_hidden_layers=3))
        same = special.attach("a", AdapterDrop(size=4, drop=drop))
        same.load_tensors(states[drop])
        assert torch.equal(special.model(**batch)[0], outputs[drop])
    assert not torch.equal(outputs[0], outputs[1])


def test_checkpointing_recomputes_with_the_layers_that_were_drawn():
    host, adapter = attached("bert", RobustAdapterDrop(size=4), num_hidden_layers=4)
    host.model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = "activation_checkpointing_enable"  # transformers 5.0 knows the older name alone
            known = enable if hasattr(host.model, enable) else "gradient_checkpointing_enable"
            getattr(host.model, known)({"use_reentrant": False})
        adapter.zero_grad()
        torch.manual_seed(0)
        host.model(**models.inputs("bert"))[0].square().sum().backward()
        found.append([p.grad for p in adapter.parameters()])
    assert any(grad is None for grad in found[0])
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(again, plain)


def test_robust_stacks_leave_out_the_same_share():
    host = Host(models.tiny("t5", num_decoder_layers=4))
    adapter = host.attach("a", RobustAdapterDrop(size=4))
    draw = adapter.train().shared["adapterdrop"]
    torch.manual_seed(0)
    for _ in range(50):
        draw.before_forward()
        assert (draw.dropped(4) >= 2) == (draw.dropped(2) == 1)


def test_too_many_layers_left_out():
    host = Host(models.tiny("bert"))
    words = "leaves no layer of this BertModel, which has 2 in a stack; leave out at most 1"
    with pytest.raises(DeltatuneError, match=words):
        host.attach("a", AdapterDrop(drop=2))
    with pytest.raises(DeltatuneError, match="all of the 1 sites chosen are in the first 1 layers"):
        host.attach("a", AdapterDrop(drop=1, sites="layers.0.ffn"))


# ---- ReFT


def only_delta(adapter, site):
    return next(delta for _, place, delta in adapter.entries() if place.name == site)


def test_loreft_is_the_formula_and_its_rows_stay_orthonormal():
    host, adapter = attached("llama", ReFT(r=3, init="random"), num_hidden_layers=1)
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        host.model(**models.inputs("llama"))[0].square().sum().backward()
        optimiser.step()
    delta, h = only_delta(adapter, "layers.0.residual"), normal(2, 5, 32)
    Q = delta.rotation()
    torch.testing.assert_close(Q @ Q.T, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(torch.cat([Q, delta.R])) == 3  # it spans what is stored
    wanted = torch.stack([h_i + Q.T @ (delta.W @ h_i + delta.b - Q @ h_i) for h_i in h.flatten(0, 1)]).view_as(h)
    torch.testing.assert_close(h + delta(h, h), wanted)


def test_an_orthonormal_rotation_is_stored_as_it_acts():
    delta = LowRankIntervention(12, 3, "loreft", "random")
    with torch.no_grad():
        delta.R.copy_(torch.linalg.qr(normal(12, 3)).Q.T * torch.tensor([[-1.0], [1.0], [-1.0]]))
    torch.testing.assert_close(delta.rotation(), delta.R)


def test_direft_has_a_free_rotation():
    _, adapter = attached("bert", DiReFT(r=2))
    delta, h = only_delta(adapter, "layers.1.residual"), normal(2, 3, 32)
    torch.testing.assert_close(delta(h, h), (h @ delta.W.T + delta.b) @ delta.R)


@pytest.mark.parametrize(("method", "each"), [(ReFT(), 1), (ReFT(first=7, last=7, tied=False), 2)])
def test_reft_counts(method, each):
    assert method.count(Host(models.tiny("bert", **BERT_BASE)).sites) == each * 12 * 4 * (768 + 768 + 1)


@pytest.mark.parametrize(("first", "last", "wanted"), [(2, 0, "110000"), (0, 1, "000001"), (1, 2, "100011")])
def test_positions_count_real_tokens_of_the_prompt(first, last, wanted):
    right = {
        "input_ids": torch.tensor([[9, 8, 7, 6, 5, 10, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6 + [0] * 2]),
    }
    left = {name: tensor.roll(2, 1) for name, tensor in right.items()}
    for tied in {True, not (first and last)}:
        host, adapter = attached("bert", ReFT(first=first, last=last, tied=tied), num_hidden_layers=1)
        for batch, padded in ((right, wanted + "00"), (left, "00" + wanted)):
            host.use("a")
            changed = host.model(**batch)[0] - unadapted(host, batch)
            assert "".join(str(int(token.any())) for token in changed[0].abs() > 1e-6) == padded
        assert adapter.count == ReFT(first=first, last=last, tied=tied).count(host.sites)


def unadapted(host, batch):
    host.use(None)
    return host.model(**batch)[0]


def test_first_and_last_tokens_have_edits_of_their_own_if_untied():
    _, adapter = attached("bert", ReFT(first=2, last=3, tied=False), num_hidden_layers=1)
    delta, h = only_delta(adapter, "layers.0.residual"), normal(2, 6, 32)
    delta.mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    change, front, end = delta(h, h), delta.prefix.change(h), delta.suffix.change(h)
    torch.testing.assert_close(change[0], torch.cat([front[0, :2], torch.zeros(1, 32), end[0, 3:]]))
    torch.testing.assert_close(change[1], torch.cat([torch.zeros(2, 32), front[1, 2:4], end[1, 4:]]))  # 2nd is front's


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generated_tokens_are_not_the_prompts(kind):
    """Step by step: the prompt with the adapter, then the base alone on the prompt's cache."""
    host, _ = attached(kind, ReFT(first=1, last=2), "lm")
    for padding in ("left", "none"):
        prompt = {name: models.inputs(kind, padding=padding)[name] for name in ("input_ids", "attention_mask")}
        host.use("a")
        options = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False, "pad_token_id": 0}
        out = host.generate(**prompt, max_new_tokens=3, min_new_tokens=3, **options)
        start = host.model(**prompt, position_ids=(prompt["attention_mask"].cumsum(1) - 1).clamp(min=0))
        torch.testing.assert_close(out.logits[0], start.logits[:, -1])
        host.use(None)
        mask, cache, length = prompt["attention_mask"], start.past_key_values, prompt["input_ids"].shape[1]
        for step in (1, 2):
            mask = F.pad(mask, (0, 1), value=1)
            ids = out.sequences[:, length + step - 1 : length + step]
            positions = mask.sum(1, keepdim=True) - 1
            state = host.model(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=positions)
            torch.testing.assert_close(out.logits[step], state.logits[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prompt_of_one_token_is_a_prompt(kind):
    """generate() passes no mask where every token is real."""
    host, _ = attached(kind, ReFT(first=1, last=1), "lm")
    ids = torch.tensor([[7]])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    out = host.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    padded = torch.tensor([[0, 7], [5, 7]])
    mask = torch.tensor([[0, 1], [1, 1]])
    assert host.generate(input_ids=padded, attention_mask=mask, **options)[0, 2:].tolist() == out[0, 1:].tolist()


def test_reft_refuses_what_it_cannot_know():
    host, _ = attached("bert", ReFT(first=1))
    with pytest.raises(DeltatuneError, match="single token without an attention_mask"):
        host.model(input_ids=torch.tensor([[7]]))
    two = Host(models.tiny("t5"))
    assert {site.name.partition(".")[0] for _, site, _ in two.attach("a", ReFT(first=1)).entries()} == {"encoder"}
    with pytest.raises(DeltatuneError, match=r"decoder\.layers\.0\.residual is in the decoder"):
        two.attach("b", ReFT(first=1, sites="decoder.*.residual"))
    with pytest.raises(DeltatuneError, match="r is at most the width, which is 32"):
        two.attach("b", ReFT(r=33))
    with pytest.raises(DeltatuneError, match="set first and last"):
        ReFT(first=2, tied=False)


# ---- AdapterFusion


def test_fusion_is_the_formula_with_a_bias_of_the_keys_or_without():
    _, adapter = attached("bert", AdapterFusion((Bottleneck(size=3, form="parallel"),) * 3))
    delta, x, h = only_delta(adapter, "layers.1.ffn"), normal(2, 5, 32), normal(2, 5, 32, seed=1)
    u = [F.linear(torch.relu(F.linear(x, m.down, m.down_bias)), m.up, m.up_bias) for m in delta.members]
    for bias in (torch.zeros(32), normal(32, seed=2)):
        scores = torch.stack([((x @ delta.Q.T + delta.b) * (u_i @ delta.K.T + bias)).sum(-1) for u_i in u], -1)
        share = scores.softmax(-1)  # (B, T, N)
        assert share.std() > 0.1
        wanted = sum(share[..., i, None] * (u_i @ delta.V.T) for i, u_i in enumerate(u))
        torch.testing.assert_close(delta(x, h), wanted, rtol=1e-4, atol=1e-4)


def test_fusion_begins_as_a_mean_and_its_penalty_measures_from_there():
    method = AdapterFusion((Bottleneck(size=3, init="small"),) * 2)
    adapter = Host(models.tiny("gpt2")).attach("a", method)
    delta, h = only_delta(adapter, "layers.0.ffn"), normal(2, 5, 32)
    torch.testing.assert_close(delta(h, h), sum(m(h, h) for m in delta.members) / 2, rtol=1e-3, atol=1e-6)
    assert delta.penalty().item() < 1e-10
    with torch.no_grad():
        delta.V += 1
    assert delta.penalty().item() == pytest.approx(0.01 * 32 * 32, rel=1e-4)


def test_trained_adapters_are_copied_and_stay_as_they_are(tmp_path):
    host, one = attached("bert", Bottleneck(size=3, form="pfeiffer"), "classify")
    two = host.attach("b", Bottleneck(size=5, form="pfeiffer", activation="tanh"), seed=1)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    fused = host.attach("f", AdapterFusion.of([one, two]))
    load_members_(fused, [one, two])
    host.use("f")
    for adapter, index in ((one, 0), (two, 1)):
        for site in ("layers.0.ffn", "layers.1.ffn"):
            mine, theirs = only_delta(fused, site).members[index], only_delta(adapter, site)
            assert mine is not theirs
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    before = {name: tensor.clone() for name, tensor in fused.tensors().items()}
    optimiser = torch.optim.AdamW([parameter for _, parameter in host.trainable("f")], lr=1e-2)
    host.model(**models.inputs("bert", "classify"), labels=torch.tensor([0, 1, 2])).loss.backward()
    optimiser.step()
    moved = {name for name, tensor in fused.tensors().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not [name for name in moved if ".members." in name]
    assert fused.count == AdapterFusion.of([one, two]).count(host.sites) == 2 * (3 * 32 * 32 + 32)
    live = host.model(**models.inputs("bert", "classify"))[0]
    host.save("f", tmp_path / "f")
    again = Host(models.tiny("bert", "classify", dropout=False))
    again.load(tmp_path / "f")  # needs neither of the two
    torch.testing.assert_close(again.model(**models.inputs("bert", "classify"))[0], live)


def test_what_cannot_be_fused():
    host, one = attached("bert", Bottleneck(size=3, form="pfeiffer"))
    for members, why in (
        ((Bottleneck(norms=True), Bottleneck()), "changes more than sublayers"),
        ((Compacter(norms=False), Compacter(norms=False)), "share parameters"),
        ((Bottleneck(), Bottleneck(form="pfeiffer")), "have other sites"),
        ((Bottleneck(sites="*.ffn"), Bottleneck(form="pfeiffer")), "read different inputs: normed, output"),
    ):
        with pytest.raises(DeltatuneError, match=why):
            host.attach("f", AdapterFusion(members))
    with pytest.raises(DeltatuneError, match="two members or more, not 1"):
        AdapterFusion((Bottleneck(),))
    with pytest.raises(DeltatuneError, match="cannot fuse the union"):
        AdapterFusion((Bottleneck() + ReFT(), Bottleneck()))
    fused = host.attach("f", AdapterFusion((one.method, Bottleneck(size=4, form="pfeiffer"))))
    before = {name: tensor.clone() for name, tensor in fused.tensors().items()}
    with pytest.raises(DeltatuneError, match=r"no tensors that fit(.|\n)*layers\.1\.ffn"):
        load_members_(fused, [one, one])
    with pytest.raises(DeltatuneError, match="not a fusion of 1 adapters"):
        load_members_(fused, [one])
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.tensors().items())


# ---- training


def trainable_host(method, **options):
    """A Host whose fusions have members that do something, as trained ones do."""
    host = host_with(method, **options)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(host.adapters["a"].named_parameters()):
            if "members" in name:
                parameter.copy_(0.2 * normal(*parameter.shape, seed=i))
    return host


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "method", ["RobustAdapterDrop(4)", "AdapterDrop(4)", "Compacter(4)", "ReFT(first=2)", "DiReFT()", "AdapterFusion()"]
)
def test_a_stopped_run_goes_on_bit_for_bit(method, tmp_path):
    """Of a robust AdapterDrop: also what it draws."""
    settings = replace(PLAIN, epochs=2, checkpoint_every=2)
    whole, tokenizer = trainable_host(method), models.tiny_tokenizer()
    wanted = train(whole, "a", TASK, ROWS, ROWS[:9], tokenizer, settings)

    def stop(step, total, loss, rate):
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(trainable_host(method), "a", TASK, ROWS, ROWS[:9], tokenizer, settings, tmp_path, stop)
    torch.manual_seed(99)
    again = trainable_host(method, head_seed=0)
    outcome = train(again, "a", TASK, ROWS, ROWS[:9], tokenizer, settings, tmp_path)
    assert outcome.resumed == 2
    assert outcome.history == wanted.history
    assert_same(tensors(whole), tensors(again))
