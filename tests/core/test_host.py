"""The Host: what it refuses and how it says so, and what routes, prompts, prefixes, merges and weights do."""

import pytest
import torch
from torch.nn import functional as F

from deltatune import IDPG, BitFit, Bottleneck, DeltatuneError, Full, Host, LoRA, Prefix, Prompt, TopLayers, parse
from deltatune.testing.fixtures import attach, make_host, outputs
from support import models


@pytest.fixture
def host():
    """A BERT with adapters `a` and `b` off their initial values; `a` acts."""
    host = make_host("bert")
    attach(host, "a", LoRA(r=2))
    attach(host, "b", Bottleneck(size=3), seed=1)
    return host


def refused(call, *parts):
    """Assert that `call` raises one DeltatuneError whose message holds every part."""
    with pytest.raises(DeltatuneError) as error:
        call()
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_attach_refuses(host):
    refused(lambda: host.attach("a", LoRA()), "'a' is attached already", "another name")
    refused(lambda: host.attach("no name", LoRA()), "'no name' is not a name", "letters, digits")
    refused(lambda: host.attach("", LoRA()), "is not a name")
    refused(lambda: host.attach("c", "LoRA()"), "not 'LoRA()'", "deltatune.parse")
    refused(lambda: host.attach("c", LoRA), "takes a method such as LoRA(r=8)")
    refused(lambda: host.attach("c", LoRA(sites="*.attn.w")), "'*.attn.w'", "layers.*.attn.q")
    refused(lambda: host.attach("c", LoRA(), head="classifier"), "head", "'classifier'", "nn.Module")
    refused(lambda: host.attach("c", LoRA(), head=True), "head", "True")
    assert list(host.adapters) == ["a", "b"]
    host.attach("c", LoRA())
    assert host.route.uniform == {"a": 1.0}, "a refused or later adapter must not take over the route"


def test_names_that_are_not_there_name_the_nearest(host):
    for call in (host.detach, host.merge_, host.trainable, host.use):
        refused(lambda call=call: call("bb"), "no adapter is called 'bb', did you mean 'b'?", "attached: a, b")
    refused(lambda: host.unmerge_("a"), "'a' is not merged")
    refused(lambda: host.use(["a", None, "x"]), "'x'", "attached: a, b")
    refused(lambda: host.use({"a": "much"}), "weight of adapter 'a'", "'much'")
    refused(lambda: host.use({"a": True}), "must be a number, not True")


def test_a_model_has_one_host(host):
    refused(lambda: Host(host.model), "already has a Host")
    refused(lambda: Host("bert-base-uncased"), "a model object", "from_pretrained")


def test_parse_refuses_what_is_no_text():
    refused(lambda: parse(8), "8", "LoRA(r=8)")
    refused(lambda: parse(None), "None")
    refused(lambda: parse("LoRa(r=8)"), "no method is called 'LoRa', did you mean 'LoRA'?")
    refused(lambda: parse("LoRA(rank=8)"), "no option 'rank'; it is called 'r' here", "options of LoRA: r, alpha")
    refused(lambda: parse("LoRA(target_modules='q')"), "it is called 'sites' here")
    refused(lambda: parse("Bottleneck(rank=8)"), "no option 'rank'\n")
    refused(lambda: parse("LoRA(r='8')"), "r must be an integer")
    refused(lambda: parse("LoRA(r=8) * 2"), "joined by +")
    refused(lambda: parse("LoRA(r=__import__('os'))"), "cannot read the value")
    refused(lambda: parse("LoRA(r=8"), "cannot read the method")


def test_a_route_must_fit_the_batch(host):
    host.use(["a", "b"])
    refused(lambda: outputs(host, models.inputs("bert", rows=3)), "2 rows", "batch has 3")
    outputs(host, models.inputs("bert", rows=4))  # as generate() repeats rows for beams


def test_the_base_is_frozen_and_the_bare_route_is_the_base(host):
    batch, bare = models.inputs("bert"), models.tiny("bert", dropout=False)
    assert not any(p.requires_grad for n, p in host.model.named_parameters() if not n.startswith("deltatune."))
    for route in (None, {}, {"a": 0.0}, [None, {}, {"b": 0.0}]):
        host.use(route)
        assert torch.equal(outputs(host, batch), bare(**batch)[0])


def test_weights_scale_the_change_and_add(host):
    """At one site the changes of two adapters add; two halves of one adapter make the whole."""
    batch = models.inputs("bert", padding="none")
    site = "layers.1.ffn.out"
    seen = []
    host.model.get_submodule(host.sites[site].module).register_forward_hook(lambda m, a, out: seen.append(out))
    for name in ("c", "d"):
        attach(host, name, LoRA(r=2, sites=site), seed=ord(name))
    for route in (None, "c", "d", {"c": 0.7, "d": -0.4}):
        host.use(route)
        outputs(host, batch)
    bare, c, d, mixed = seen
    assert torch.allclose(mixed, bare + 0.7 * (c - bare) - 0.4 * (d - bare), atol=1e-5)


def test_detaching_leaves_the_others_active(host):
    batch = models.inputs("bert", rows=2)
    host.use("b")
    alone = outputs(host, batch)
    host.use(["b", {"a": 1.0, "b": 1.0}])
    host.detach("a")
    assert torch.allclose(outputs(host, batch), alone, atol=1e-5)
    host.detach("b")
    assert not hasattr(host.model, "deltatune")
    assert outputs(host, batch).shape == alone.shape
    host.attach("a", LoRA(r=2))
    assert host.route.uniform == {"a": 1.0}


def test_a_sequential_bottleneck_sees_what_lora_on_o_made():
    host, batch, seen = make_host("bert"), models.inputs("bert"), {}
    attach(host, "lora", LoRA(r=2, sites="layers.0.attn.o"))
    adapter = attach(host, "seq", Bottleneck(size=3, sites="layers.0.attn"), seed=1)
    module = host.model.get_submodule(host.sites["layers.0.attn.o"].module)
    module.register_forward_hook(lambda m, args, out: seen.__setitem__("out", out))
    host.use("lora")
    outputs(host, batch)
    h = seen["out"]
    host.use({"seq": 1.0, "lora": 1.0})  # whatever the order they are named or attached in
    outputs(host, batch)
    (_, _, delta), *_ = adapter.entries()
    wanted = h + F.linear(F.relu(F.linear(h, delta.down, delta.down_bias)), delta.up, delta.up_bias)
    assert torch.allclose(seen["out"], wanted, atol=1e-5)


def test_merging_refuses_and_stacks():
    host, batch = make_host("gpt2"), models.inputs("gpt2")
    before = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    attach(host, "a", LoRA(r=2, sites="*.attn.{q,v}"))
    attach(host, "b", LoRA(r=3, sites="*.attn.qkv"), seed=1)
    attach(host, "p", Prefix(length=2))
    refused(lambda: host.merge_("p"), "'p'", "Prefix has no exact weight form", "keep it unmerged")
    host.use({"a": 1.0, "b": 1.0})
    live = outputs(host, batch)
    assert host.merge_("a") < 1e-4
    host.merge_("b")
    assert torch.allclose(outputs(host, batch), live, atol=1e-4)
    refused(lambda: host.merge_("a"), "merged already")
    refused(lambda: host.attach("c", LoRA()), "cannot attach while a, b is merged", "unmerge_")
    refused(lambda: host.use("p"), "cannot use while a, b is merged")
    refused(lambda: host.use(["a", "b"]), "merged")
    assert "merged into the weights" in host.describe()
    host.unmerge_("a")
    host.unmerge_("b")
    host.use(None)
    after = host.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_bias_that_is_not_there_cannot_take_a_merge():
    host = make_host("llama")
    host.attach("a", BitFit(missing="add", sites="*.attn.q"))
    refused(lambda: host.merge_("a"), "layers.0.attn.q has no bias to merge into")


def test_replaced_weights_run_alone(host):
    host.attach("full", Full())
    host.use("full")
    for route in ({"full": 0.5}, {"full": 1.0, "a": 1.0}, ["full", "a"]):
        refused(lambda route=route: host.use(route), "'full' (Full())", "can only run alone", "host.use('full')")
    assert host.route.uniform == {"full": 1.0}


def test_more_layers_than_there_are_cannot_be_trained(host):
    refused(lambda: host.attach("top", TopLayers(3)), "TopLayers(3): this BertModel has 2 layers; Full() trains all")
    host.attach("top", TopLayers(2))


def test_tied_weights_are_one_parameter():
    host, batch = make_host("gpt2", "lm"), models.inputs("gpt2")
    table = host.model.transformer.wte.weight
    assert host.model.lm_head.weight is table
    adapter = host.attach("full", Full())
    assert adapter.count == host.sites.base_params == sum({id(p): p.numel() for p in host.model.parameters()}.values())
    own = host.model.transformer.wte.weight
    assert own is not table
    assert host.model.lm_head.weight is own
    host.model(**batch, labels=batch["input_ids"]).loss.backward()
    assert own.grad is not None
    assert table.grad is None
    host.detach("full")
    assert host.model.lm_head.weight is host.model.transformer.wte.weight is table


def test_a_new_adapter_starts_from_the_base_not_from_the_active_weights():
    host = make_host("bert")
    wanted = host.attach("first", Bottleneck(norms=True)).tensors()
    host.detach("first")
    attach(host, "full", Full())
    found = host.attach("first", Bottleneck(norms=True)).tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("route", ["other", ["other", None, "other"]])
@pytest.mark.parametrize("other", [LoRA(r=2, sites="embed"), IDPG(length=2)])
def test_a_new_prompt_starts_from_the_base_not_from_changed_embeddings(other, route):
    wanted = make_host("llama").attach("new", Prompt(length=3)).tensors()
    host = make_host("llama")
    attach(host, "other", other)
    host.model(**models.inputs("llama"))
    host.use(route)
    found = host.attach("new", Prompt(length=3)).tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert host.route.names == {"other"}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "gpt_neox", "opt"])
def test_a_prefix_shifts_the_positions(kind):
    batch = models.inputs(kind, padding="none", length=5)
    shifted, plain = make_host(kind), make_host(kind)
    attach(shifted, "a", Prefix(length=3))
    attach(plain, "a", Prefix(length=3, shift_positions=False))
    first = 3 + (models.PAD + 1 if kind == "roberta" else 0)
    positions = torch.arange(first, first + 5).expand(3, -1)
    assert torch.allclose(outputs(plain, {**batch, "position_ids": positions}), outputs(shifted, batch), atol=1e-5)
    assert not torch.allclose(outputs(plain, batch), outputs(shifted, batch), atol=1e-3)


def test_a_prefix_too_long_for_the_position_table_is_refused():
    host = make_host("bert")
    host.attach("a", Prefix(length=60))
    batch = models.inputs("bert", length=100)
    refused(lambda: outputs(host, batch), "100 tokens and a prefix of 60", "128 positions", "shift_positions=False")


def test_a_prompt_is_tokens_in_front():
    """The same as handing the model embeddings with the prompt's vectors in front, padding on the right."""
    host, batch = make_host("bert"), models.inputs("bert")
    adapter = attach(host, "a", Prompt(length=3))
    out = outputs(host, batch)
    (_, _, delta), *_ = adapter.entries()
    host.use(None)
    vectors = host.model.embeddings.word_embeddings(batch["input_ids"])
    vectors = torch.cat([delta.prompt.expand(3, -1, -1), vectors], 1)
    mask = F.pad(batch["attention_mask"], (3, 0), value=1)
    wanted = outputs(host, {"inputs_embeds": vectors, "attention_mask": mask})
    assert torch.allclose(out[mask.bool()], wanted[mask.bool()], atol=1e-5)


def test_the_mask_is_the_one_the_model_saw():
    host = make_host("gpt2")
    host.attach("a", Prompt(length=3))
    host.attach("b", LoRA(r=2))
    ids = models.inputs("gpt2", padding="none", rows=2, length=4)["input_ids"]
    host.use("b")
    assert outputs(host, {"input_ids": ids}).shape[1] == 4
    assert host.mask is None
    host.use(["a", "b"])
    assert outputs(host, {"input_ids": ids}).shape[1] == 7
    assert host.mask.tolist() == [[1] * 7, [0, 0, 0, 1, 1, 1, 1]]


def test_positional_arguments_survive_a_prompt():
    host, batch = make_host("bert"), models.inputs("bert")
    attach(host, "a", Prompt(length=3))
    with torch.no_grad():
        by_position = host.model(batch["input_ids"], batch["attention_mask"])[0]
    assert torch.equal(by_position, outputs(host, batch))


def test_labels_follow_the_tokens_but_not_into_a_decoder():
    host, batch = make_host("gpt2", "lm"), models.inputs("gpt2", padding="none")
    attach(host, "a", Prompt(length=3))
    loss, logits = host.model(**batch, labels=batch["input_ids"])[:2]
    wanted = F.cross_entropy(logits[:, 2:-1].flatten(0, 1), batch["input_ids"].flatten())
    assert torch.allclose(loss, wanted, atol=1e-5)
    host, batch = make_host("bert", "classify"), models.inputs("bert", length=models.LABELS, padding="none")
    attach(host, "a", Prompt(length=3))
    several = torch.ones(3, models.LABELS)  # as many labels as tokens, one number each
    assert host.model(**batch, labels=several).loss.isfinite()
    host, batch = make_host("t5", "lm"), models.inputs("t5", padding="none")
    attach(host, "a", Prompt(length=3))
    labels = batch["input_ids"].flip(1)  # as long as the input
    del batch["decoder_input_ids"]
    assert host.model(**batch, labels=labels).logits.shape[1] == labels.shape[1]


def test_a_weighted_prompt_is_its_vectors_scaled():
    host, batch = make_host("gpt2"), models.inputs("gpt2")
    adapter = attach(host, "a", Prompt(length=3))
    host.use({"a": 0.25})
    weighted = outputs(host, batch)
    with torch.no_grad():
        next(adapter.parameters()).mul_(0.25)
    host.use("a")
    assert torch.allclose(outputs(host, batch), weighted, atol=1e-5)


def test_prompts_refuse_what_they_cannot_enter():
    host = make_host("gpt2", "lm")
    attach(host, "a", Prompt(length=3))
    ids = models.inputs("gpt2", padding="none")["input_ids"]
    refused(lambda: host.model(inputs_embeds=torch.zeros(1, 2, 32)), "needs input_ids", "inputs_embeds")
    refused(lambda: host.model.generate(ids, max_new_tokens=2), "host.generate")
    found = host.generate(input_ids=ids, max_new_tokens=2, min_new_tokens=2, num_beams=2, repetition_penalty=1.3)
    assert torch.equal(found[:, :7], ids)
    assert found.shape == (3, 9)
    assert int(found.max()) < models.VOCABULARY


def test_describe_tells_what_is_there(host):
    text = host.describe()
    for part in ("BertModel: 23,520 frozen", "a: LoRA(r=2)", "512 parameters (2.18 %", "layers.*.attn.q", "active: a"):
        assert part in text, text
    host.use(["a", {"a": 0.7, "b": 0.3}, None])
    assert "by row: a, 0.7 a + 0.3 b, the bare base" in host.describe()


@torch.no_grad()
def test_stacked_adapters_see_what_came_before(host):
    """Two bottlenecks at one site: side by side they read the same h, stacked the second reads what the first made."""
    host.detach("a")
    attach(host, "c", Bottleneck(size=4), seed=2)
    batch = models.inputs("bert")
    host.use({"b": 1.0, "c": 1.0})
    together = outputs(host, batch)
    host.use({"b": 1.0, "c": 1.0}, stacked=True)
    first = outputs(host, batch)
    host.use({"c": 1.0, "b": 1.0}, stacked=True)
    second = outputs(host, batch)
    assert "stacked: c, then b" in host.describe()
    assert not torch.allclose(first, together, atol=1e-4)
    assert not torch.allclose(first, second, atol=1e-4)
    host.use(None)  # the same by hooks of our own
    handles = []
    for layer in (0, 1):
        for name in ("attn", "ffn"):
            site = host.sites[f"layers.{layer}.{name}"]
            deltas = [host.adapters[n].deltas[f"bottleneck/{site.name.replace('.', '/')}"] for n in ("b", "c")]

            def stack(module, args, output, deltas=deltas):
                for delta in deltas:
                    output = output + delta(output, output)
                return output

            handles.append(host.model.get_submodule(site.module).register_forward_hook(stack))
    torch.testing.assert_close(outputs(host, batch), first)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_dropped_layers_are_disabled(host):
    batch = models.inputs("bert")
    host.use("b")
    full = outputs(host, batch)
    host.drop_("b", 1)
    assert "disabled in the first 1 layers" in host.describe()
    upper = outputs(host, batch)
    assert not torch.allclose(upper, full, atol=1e-4)
    for key, delta in host.adapters["b"].deltas.items():
        if "layers/0" in key:
            delta.up.zero_()
            delta.up_bias.zero_()
    host.drop_("b", 0)
    torch.testing.assert_close(outputs(host, batch), upper)
    refused(lambda: host.drop_("b", 2), "cannot drop 2 of 2 layers", "0 to 1")


def test_parameter_groups_hold_every_parameter_once(host):
    groups = host.parameter_groups("a", 1e-3, 0.1)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for _, p in host.trainable("a"))
    assert {group["lr"] for group in groups} == {1e-3}


def test_describe_counts_the_storage(host):
    text = host.describe()
    adapters = sum(p.numel() * 4 for name in "ab" for p in host.adapters[name].parameters())
    base = sum(p.numel() * 4 for _, p in host.base.tensors())
    assert f"storage: {adapters / 1000:.3g} kB for 2 adapters beside one base of {base / 1000:.3g} kB" in text
    assert f"2 tuned copies of the model: {2 * base / 1000:.3g} kB" in text


@pytest.mark.parametrize("method", [LoRA(r=2), Bottleneck(size=3, norms=True)])
@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_heads_and_norms_are_copied_from_the_base_alone(kind, method):
    """A copied module must not bring along what an adapter attached before does there."""
    host, batch = make_host(kind, "classify"), models.inputs(kind, "classify")
    base = outputs(host, batch)
    attach(host, "a", method)
    host.attach("b", method)
    host.use("b")
    torch.testing.assert_close(outputs(host, batch), base)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("LoRA(r=2, sites=('lm_head', '*.attn.q'))", r"lm_head is another Linear .* save the adapters first"),
        ("LoRA(r=2, sites='embed')", r"has 120 tokens, and had 101"),
        ("Prompt(length=3)", r"has 120 tokens, and had 101"),
        ("LoRA(r=2)", None),
    ],
)
def test_a_model_changed_under_its_adapters_is_refused_where_they_act(method, words):
    host = Host(models.tiny("llama", "lm"))
    host.attach("a", parse(method))
    batch = models.inputs("llama", "lm")
    before = host.model(**batch).logits
    host.model.resize_token_embeddings(120, mean_resizing=False)
    if words is None:
        torch.testing.assert_close(host.model(**batch).logits[..., : models.VOCABULARY], before)
        return
    with pytest.raises(DeltatuneError, match=words):
        host.model(**batch)
    host.use(None)
    host.model(**batch)
