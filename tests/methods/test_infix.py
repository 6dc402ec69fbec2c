"""Prefix(place="infix"): keys and values between prompt and answer, against those in a cache of the bare model."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, Trainer, TrainingArguments

from deltatune import DeltatuneError, LoRA, Prefix, Prompt, UniPELT
from deltatune.core.registry import parse
from deltatune.store.peft import peft_obstacles
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.testing import check_method
from deltatune.testing.fixtures import attach, make_host
from deltatune.training.forward import token_logits
from deltatune.training.inference.prediction import encode_for
from deltatune.training.task_model import labelled_outputs
from support import models
from support.language_models import generation_tokenizer

P = 3
INFIX = Prefix(length=P, place="infix")
X, Y = 5, 4
"""Tokens of the prompt and of the answer."""
DECODERS = ["gpt2", "llama", "mistral", "qwen2", "gpt_neox", "opt"]


def tokens(rows=1, length=X + Y, seed=0):
    return torch.randint(5, models.VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def labels_of(ids, prompt=X):
    return torch.cat([torch.full_like(ids[:, :prompt], -100), ids[:, prompt:]], 1)


def vectors(host, name="a"):
    """Keys and values (P, H_kv·K) of each layer."""
    return [delta.prefix() for _, _, delta in host.adapters[name].entries()]


@torch.no_grad()
def reference(kind, ids, prompt, layers, shift=True):
    """Logits (1, T, V) by Li and Liang's construction: x before its last token fills the cache, the infix is put behind
    it there, and the rest is read with positions that begin behind the infix."""
    model = models.tiny(kind, "lm")
    cache = DynamicCache(config=model.config)
    before = model(ids[:, : prompt - 1], past_key_values=cache, use_cache=True).logits if prompt > 1 else ids[:, :0]
    heads, width = (cache.layers[0].keys.shape[i] for i in (1, 3))
    pairs = []
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        placed = [v.view(P, heads, width).transpose(0, 1)[None] for v in (keys, values)]
        pairs.append((torch.cat([layer.keys, placed[0]], 2), torch.cat([layer.values, placed[1]], 2)))
    rest = ids[:, prompt - 1 :]
    start = prompt - 1 + (P if shift else 0)
    mask = torch.ones(1, prompt - 1 + P + rest.shape[1], dtype=torch.long)
    options = {} if kind == "opt" else {"position_ids": torch.arange(start, start + rest.shape[1])[None]}
    after = model(rest, past_key_values=DynamicCache(pairs), attention_mask=mask, **options).logits
    return torch.cat([before, after], 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", DECODERS)
def test_it_is_a_cache_of_the_prompt_and_the_infix(kind, attention):
    host = make_host(kind, "lm")
    host.model.set_attn_implementation(attention)
    attach(host, "a", INFIX)
    ids = tokens()
    with torch.no_grad():
        found = host.model(ids, labels=labels_of(ids)).logits
    torch.testing.assert_close(found, reference(kind, ids, X, vectors(host)), rtol=1e-4, atol=1e-4)
    host.use(None)
    with torch.no_grad():
        bare = host.model(ids).logits
    assert torch.equal(found[:, : X - 1], bare[:, : X - 1]) or torch.allclose(
        found[:, : X - 1], bare[:, : X - 1], atol=1e-5
    )
    assert not torch.allclose(found[:, X - 1 :], bare[:, X - 1 :], atol=1e-2)


def test_positions_need_not_move():
    host = make_host("llama", "lm")
    attach(host, "a", Prefix(length=P, place="infix", shift_positions=False))
    ids = tokens()
    with torch.no_grad():
        found = host.model(ids, labels=labels_of(ids)).logits
    torch.testing.assert_close(found, reference("llama", ids, X, vectors(host), shift=False), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_is_attention_written_out():
    """The first layer of GPT-2 by hand: embeddings, one softmax over [x; infix; y] for each query, the projection."""
    host = make_host("gpt2")
    attach(host, "a", INFIX)
    ids = tokens()
    model, D, H = host.model, 32, 4
    block = model.h[0]
    heard = []
    hook = block.attn.c_proj.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    with host.answers(labels_of(ids)):
        model(ids)
    hook.remove()
    positions = torch.tensor([*range(X - 1), *range(X - 1 + P, X + Y + P)])
    q, k, v = block.attn.c_attn(block.ln_1(model.wte(ids) + model.wpe.weight[positions])).split(D, -1)
    keys, values = vectors(host)[0]
    for t in range(X + Y):
        for head in range(H):
            part = slice(head * D // H, (head + 1) * D // H)
            seen_k, seen_v = k[0, : t + 1, part], v[0, : t + 1, part]
            if t >= X - 1:
                seen_k, seen_v = (
                    torch.cat([seen_k[: X - 1], keys[:, part], seen_k[X - 1 :]]),
                    torch.cat([seen_v[: X - 1], values[:, part], seen_v[X - 1 :]]),
                )
            share = F.softmax(seen_k @ q[0, t, part] / (D // H) ** 0.5, 0)
            torch.testing.assert_close(heard[0][0, t, part], share @ seen_v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@torch.no_grad()
def test_rows_of_other_lengths_and_adapters_are_as_alone(kind, side):
    host = make_host(kind, "lm")
    attach(host, "a", INFIX)
    attach(host, "b", Prefix(length=2, place="infix"), seed=5)
    attach(host, "c", Prefix(length=4), seed=6)
    attach(host, "d", LoRA(r=2), seed=7)
    route = ["a", "b", "c", None, {"a": 0.5, "c": 0.7}, {"b": 1.0, "d": 1.0}]
    lengths = [(5, 4), (2, 3), (6, 1), (4, 4), (1, 5), (3, 3)]
    longest = max(sum(each) for each in lengths)
    rows = [tokens(length=sum(each), seed=i)[0] for i, each in enumerate(lengths)]
    batch = {name: torch.zeros(len(rows), longest, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    labels = torch.full((len(rows), longest), -100)
    places = []
    for i, (row, (prompt, _)) in enumerate(zip(rows, lengths, strict=True)):
        first = longest - len(row) if side == "left" else 0
        places.append(slice(first, first + len(row)))
        batch["input_ids"][i, places[i]], batch["attention_mask"][i, places[i]] = row, 1
        labels[i, first + prompt : first + len(row)] = row[prompt:]
    if side == "left" and kind != "opt":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    host.use(route)
    with host.answers(labels, batch["attention_mask"]):
        together = host.model(**batch).logits
    for i, (row, entry) in enumerate(zip(rows, route, strict=True)):
        host.use(entry)
        with host.answers(labels[i : i + 1, places[i]]):
            alone = host.model(row[None]).logits[0]
        torch.testing.assert_close(together[i, places[i]], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "opt"])
def test_generation_reads_the_infix_once_and_as_training_did(kind):
    """Left-padded, with a cache or without, by beams: each step's logits are those of the whole text with labels."""
    host = make_host(kind, "lm")
    attach(host, "a", INFIX)
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    found = {
        cache: host.generate(input_ids=ids, attention_mask=mask, use_cache=cache, output_logits=True, **options)
        for cache in (True, False)
    }
    assert torch.equal(found[True].sequences, found[False].sequences)
    cached, uncached = (torch.stack(found[cache].logits, 1) for cache in (True, False))
    torch.testing.assert_close(cached, uncached, rtol=1e-4, atol=1e-4)
    for row, prompt in ((0, 6), (1, 3)):
        whole = found[True].sequences[row : row + 1, 6 - prompt :]
        with torch.no_grad():
            trained = host.model(whole, labels=labels_of(whole, prompt)).logits[0, prompt - 1 : -1]
        torch.testing.assert_close(cached[row], trained, rtol=1e-4, atol=1e-4)
    plain = host.model.generate(input_ids=ids, attention_mask=mask, **options)  # it keeps a cache, so it is the same
    assert torch.equal(plain.sequences, found[True].sequences)
    beams = [
        host.generate(input_ids=ids, attention_mask=mask, num_beams=3, use_cache=cache, **options).sequences
        for cache in (True, False)
    ]
    assert torch.equal(*beams)


def test_without_a_cache_the_answer_must_be_stated():
    host = make_host("llama", "lm")
    attach(host, "a", INFIX)
    with pytest.raises(DeltatuneError, match=r"host\.generate\(\.\.\.\)"):
        host.model(tokens(), use_cache=False)
    with pytest.raises(DeltatuneError, match=r"host\.generate"):
        host.model.generate(tokens(), use_cache=False, max_new_tokens=2)
    host.use(None)
    host.model(tokens(), use_cache=False)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([-100, 7, 7, -100, 8, 8], "row 0 has 2 answers .*without packing"),
        ([7, 7, 7, 7, 8, 8], "row 0 is an answer without a prompt"),
    ],
)
def test_what_is_not_one_answer_behind_a_prompt_is_refused(labels, words):
    host = make_host("gpt2", "lm")
    attach(host, "a", INFIX)
    ids = tokens(1, 6)
    with pytest.raises(DeltatuneError, match=words):
        labelled_outputs(host, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([labels]))


def test_training_states_where_answers_are():
    """The loss of the training loop is that of a call with labels."""
    host = make_host("llama", "lm")
    attach(host, "a", INFIX)
    ids = tokens(2)
    labels = labels_of(ids)
    outputs, targets = labelled_outputs(host, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)
    loss = F.cross_entropy(token_logits(outputs), targets)
    torch.testing.assert_close(loss, host.model(ids, labels=labels).loss)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for _, p in host.trainable("a"))


def test_checkpointing_knows_the_answer_when_it_computes_again():
    grads = []
    for checkpointing in (False, True):
        host = make_host("llama", "lm")
        attach(host, "a", INFIX)
        host.model.train()
        if checkpointing:
            enable = "activation_checkpointing_enable"  # transformers 5.0 knows the older name alone
            getattr(host.model, enable if hasattr(host.model, enable) else "gradient_checkpointing_enable")()
        ids = tokens(2)
        with host.answers(labels_of(ids)):
            logits = host.model(ids).logits
        logits[:, X - 1 :].square().sum().backward()
        grads.append([p.grad for _, p in host.trainable("a")])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_virtual_tokens_in_front_move_the_boundary_with_the_text():
    host = make_host("llama", "lm")
    attach(host, "a", Prompt(length=2) + INFIX)
    ids = tokens()
    found = host.model(ids, labels=labels_of(ids)).logits
    with_ids = torch.cat([torch.tensor([[models.VOCABULARY, models.VOCABULARY + 1]]), ids], 1)
    with host.answers(labels_of(with_ids, X + 2)):
        torch.testing.assert_close(host.model(with_ids).logits, found)
    with host.answers(labels_of(with_ids, X)):
        assert not torch.allclose(host.model(with_ids).logits, found, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_models_that_have_no_answer_behind_a_prompt_refuse(kind):
    with pytest.raises(DeltatuneError, match=r"Prefix\(length=3, place='infix'\).*between a prompt and its answer"):
        make_host(kind).attach("a", INFIX)


def test_biases_in_place_of_positions_cannot_be_moved():
    host = make_host("llama", "lm")
    host.sites.facts = replace(host.sites.facts, position_modules=())  # as of a decoder with ALiBi
    with pytest.raises(DeltatuneError, match="shift_positions=False"):
        host.attach("a", INFIX)
    attach(host, "a", Prefix(length=P, place="infix", shift_positions=False))
    ids = tokens()
    assert torch.isfinite(host.model(ids, labels=labels_of(ids)).logits).all()


def test_positions_must_suffice():
    host = make_host("gpt2", "lm")
    attach(host, "a", INFIX)
    ids = tokens(1, models.POSITIONS - 1)
    with pytest.raises(DeltatuneError, match="prefix of 3 exceed"):
        host.model(ids, labels=labels_of(ids))


def test_positions_must_suffice_for_each_row_alone():
    host = make_host("gpt2", "lm")
    attach(host, "a", Prefix(length=40))
    attach(host, "b", Prefix(length=40, place="infix"))
    ids = tokens(2, models.POSITIONS - 60)
    host.use(["a", "b"])
    assert torch.isfinite(host.model(ids).logits).all()
    host.use({"a": 1.0, "b": 1.0})
    with pytest.raises(DeltatuneError, match="prefix of 80 exceed"):
        host.model(ids)


def test_texts_of_it_read_back_and_old_ones_are_prefixes():
    assert repr(INFIX) == "Prefix(length=3, place='infix')"
    assert parse(repr(INFIX)) == INFIX
    assert parse("Prefix(length=3)").place == "prefix"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Prefix(length=3, mlp=5, place='infix')", "UniPELT(Prefix(length=3, place='infix'))"])
def test_laws(text):
    check_method(parse(text), models=["gpt2", "llama", "gpt_neox", "mistral"])
    assert isinstance(UniPELT(INFIX), UniPELT)


def test_texts_without_a_prompt_are_refused_before_training():
    host = make_host("llama", "lm")
    attach(host, "a", INFIX)
    with pytest.raises(DeltatuneError, match="language modelling have no prompt"):
        encode_for(host, "a", LanguageModel(max_length=16), [{"text": "the film is good"}], generation_tokenizer())


def test_peft_has_no_infix(tmp_path):
    host = make_host("llama", "lm")
    host.attach("a", INFIX)
    assert any("place is not 'prefix'" in problem for problem in peft_obstacles(INFIX, host))


def test_the_trainer_of_transformers_states_the_answer_by_its_labels(tmp_path):
    host = make_host("llama", "lm")
    attach(host, "a", INFIX)
    ids = tokens(4)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels_of(ids), strict=True)]
    with host.answers(labels_of(ids)), torch.no_grad():
        stated = host.model(ids).logits
    args = TrainingArguments(tmp_path, per_device_eval_batch_size=4, report_to=[], use_cpu=True)
    trainer = Trainer(host.model, args, eval_dataset=rows)
    loss = trainer.evaluate()["eval_loss"]
    wanted = F.cross_entropy(stated[:, X - 1 : -1].flatten(0, 1), ids[:, X:].flatten())
    assert loss == pytest.approx(float(wanted), abs=1e-4)
