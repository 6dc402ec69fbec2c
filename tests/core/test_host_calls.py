"""The calls that users of other libraries look for: merge_and_unload, disabled, parameter counts, tables, options."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

import deltatune
from deltatune import Head, HeadConfig, Houlsby, LoRA, Settings
from deltatune.core.errors import CannotMerge, DeltatuneError
from deltatune.core.html_table import html_table
from support import models
from support.language_models import lm_host, randomize_


@torch.no_grad()
def logits(model, kind="llama"):
    return model.eval()(**models.inputs(kind)).logits


# ---- merge_and_unload


@pytest.mark.parametrize("method", ["LoRA(r=4)", "DoRA(r=4)", "IA3()", "BitFit()"])
def test_merge_and_unload_gives_a_plain_model(method, tmp_path):
    host = lm_host("gpt2", method)
    adapted, keys = logits(host.model, "gpt2"), set(models.tiny("gpt2", "lm").state_dict())
    model = host.merge_and_unload()
    assert model is host.model
    assert not host.adapters
    assert not host.merged
    assert not host.route.names
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(logits(model, "gpt2"), adapted, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))


def test_all_active_adapters_are_merged_with_their_weights():
    host = lm_host("llama", "LoRA(r=4)")
    host.attach("b", LoRA(r=2), head=False)
    host.attach("bystander", LoRA(r=2), head=False)
    randomize_(host)
    host.use({"a": 0.5, "b": 2.0})
    adapted = logits(host.model)
    torch.testing.assert_close(logits(host.merge_and_unload()), adapted, rtol=1e-4, atol=1e-4)
    assert not host.adapters


def test_a_host_goes_on_after_unloading(tmp_path):
    host = lm_host("llama", "LoRA(r=4)")
    merged = logits(host.merge_and_unload())
    host.attach("next", LoRA(r=2))
    with host.disabled():
        assert torch.equal(logits(host.model), merged)
    host.save("next", tmp_path / "next")
    assert deltatune.Host(host.merge_and_unload()).load(tmp_path / "next", other_base=True).count == 2 * 2 * 2 * 56


@pytest.mark.parametrize("method", ["Prefix(length=3)", "Bottleneck(size=4)"])
def test_what_cannot_be_merged_stays_as_it_was(method):
    host = lm_host("llama", method)
    host.attach("b", LoRA(r=2), head=False)
    randomize_(host)
    host.use({"b": 1.0, "a": 1.0})
    before, base = logits(host.model), {name: t.clone() for name, t in host.base.tensors()}
    with pytest.raises(CannotMerge, match="no exact weight form"):
        host.merge_and_unload()
    assert torch.equal(logits(host.model), before)
    assert not host.merged
    assert all(torch.equal(tensor, base[name]) for name, tensor in host.base.tensors())


def test_what_adds_up_together_and_multiplies_in_the_weights_is_refused():
    host = lm_host("llama", "IA3()")
    host.attach("b", deltatune.IA3(), head=False)
    randomize_(host)
    with torch.no_grad():
        for name in ("a", "b"):
            for _, parameter in host.trainable(name):
                parameter.copy_(torch.full_like(parameter, 1.5))
    host.use({"a": 1.0, "b": 1.0})
    before = logits(host.model)
    with pytest.raises(CannotMerge, match="a and b, merged one after another, differ by"):
        host.merge_and_unload()
    assert torch.equal(logits(host.model), before)
    host.use({"a": 1.0, "b": 1.0}, stacked=True)
    adapted = logits(host.model)
    torch.testing.assert_close(logits(host.merge_and_unload()), adapted, rtol=1e-3, atol=1e-4)


def test_layers_that_were_dropped_are_not_merged_in_silence():
    host = lm_host("llama", "LoRA(r=4)")
    host.drop_("a", 1)
    with pytest.raises(CannotMerge, match="changed the outputs"):
        host.merge_and_unload()
    host.drop_("a", 0)
    assert not host.merge_and_unload().state_dict().keys() - models.tiny("llama", "lm").state_dict().keys()


def test_what_to_merge_must_be_clear():
    host = lm_host("llama", "LoRA(r=4)")
    host.use(["a", None])
    with pytest.raises(CannotMerge, match=r"on some rows only; choose those to merge: host\.use"):
        host.merge_and_unload()
    host.use(None)
    with pytest.raises(CannotMerge, match=r"no adapter is active \(attached: a\)"):
        host.merge_and_unload()


def test_a_quantised_base_is_refused_with_the_way():
    model = models.tiny("llama", "lm")
    deltatune.quantize_(model, "int8")
    host = deltatune.Host(model)
    host.attach("a", LoRA(r=2))
    with pytest.raises(CannotMerge, match=r"stored in int8; make a plain model first: dequantize_\(model\)"):
        host.merge_and_unload()


# ---- classifiers


LABELS = ("bad", "good", "so-so")
IDS = {"bos_token_id": models.BOS, "eos_token_id": models.EOS, "mask_token_id": models.MASK}
HEADS = [
    ("bert", "pooler", False, "BertForSequenceClassification"),
    ("bert", "cls", True, "BertForSequenceClassification"),
    ("bert", "none", False, "BertForTokenClassification"),
    ("roberta", "cls", True, "RobertaForSequenceClassification"),
    ("gpt2", "last", False, "GPT2ForSequenceClassification"),
]


def classifier_host(kind, pooling, dense, method="LoRA(r=4)"):
    model = models.tiny(kind)
    head = Head(HeadConfig(pooling=pooling, dense=dense, outputs=3, width=model.config.hidden_size))
    host = deltatune.Host(model)
    task = {"task": "tag" if pooling == "none" else "classify", "labels": LABELS, "tags": LABELS}
    host.attach("a", deltatune.parse(method), head=head, extra={"task": task})
    randomize_(host)
    return host


@torch.no_grad()
def head_logits(host, batch):
    """The head on the base's states, as the session's predictions have it."""
    out = host.model.eval()(**batch)
    head = host.adapters["a"].head.eval()
    return head(out.last_hidden_state, batch["attention_mask"], getattr(out, "pooler_output", None))


def padded_inputs(kind):
    batch = models.inputs(kind)
    real = batch["attention_mask"].bool()
    batch["input_ids"][real & (batch["input_ids"] == models.PAD)] = models.UNK
    batch["input_ids"][~real] = models.PAD
    return batch


@pytest.mark.parametrize(("kind", "pooling", "dense", "name"), HEADS)
def test_a_head_becomes_part_of_the_model_of_transformers(kind, pooling, dense, name, tmp_path):
    host = classifier_host(kind, pooling, dense)
    batch = padded_inputs(kind)
    wanted = head_logits(host, batch)
    model = host.merge_and_unload()
    assert type(model).__name__ == name
    assert model.config.id2label == dict(enumerate(LABELS))
    model.save_pretrained(tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, wanted, rtol=1e-3, atol=1e-4)
    assert not [key for key in again.state_dict() if "deltatune" in key]


@pytest.mark.parametrize(
    ("kind", "pooling", "dense", "words"),
    [
        (
            "bert",
            "mean",
            False,
            r"BertForSequenceClassification pools otherwise.*: --pooling pooler or --pooling cls",
        ),
        (
            "bert",
            "mean",
            True,
            r"BertForSequenceClassification pools otherwise.*: --pooling pooler or --pooling cls",
        ),
        ("bert", "cls", False, "BertForSequenceClassification pools otherwise"),
        ("roberta", "mean", False, "RobertaForSequenceClassification has a layer between.*: --pooling cls --dense$"),
        ("gpt2", "mean", False, "GPT2ForSequenceClassification pools otherwise.*: --pooling last$"),
        ("llama", "last", False, "LlamaForSequenceClassification has no bias"),
        ("t5", "last", False, "encoder-decoder"),
    ],
)
def test_a_head_that_no_such_model_has_is_refused(kind, pooling, dense, words):
    host = classifier_host(kind, pooling, dense)
    before = {name: tensor.clone() for name, tensor in host.base.tensors()}
    with pytest.raises(CannotMerge, match=words):
        host.merge_and_unload()
    assert list(host.adapters) == ["a"]
    assert not host.merged
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.base.tensors())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "head"),
    [
        ("ultrabert", {"prediction_head_size": 16}, {"pooling": "mean"}),
        (
            "eurobert",
            {"bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 4},
            {"pooling": "mean", "dense": True, "activation": "gelu"},
        ),
        (
            "eurobert",
            {"bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 4},
            {"pooling": "cls", "dense": True, "activation": "gelu"},
        ),
    ],
)
def test_mean_pooling_goes_where_transformers_has_it(kind, options, head, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = AutoConfig.for_model(kind, vocab_size=models.VOCABULARY, pad_token_id=models.PAD, **sizes, **options)
    host = deltatune.Host(AutoModel.from_config(config))
    own = Head(HeadConfig(outputs=3, width=32, **head))
    torch.nn.init.normal_(own.out.bias)
    host.attach("a", LoRA(r=2), head=own, extra={"task": {"task": "classify", "labels": LABELS}})
    randomize_(host)
    batch = {key: padded_inputs("llama")[key] for key in ("input_ids", "attention_mask")}
    wanted = head_logits(host, batch)
    host.merge_and_unload().save_pretrained(tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_merged_folder_of_a_classifier_is_one_for_auto_classes_and_pipelines(tmp_path):
    from deltatune.store.merged_model import save_merged

    host = classifier_host("bert", "cls", True)
    batch = padded_inputs("bert")
    wanted = head_logits(host, batch)
    done = save_merged(host, "a", tmp_path / "out", models.tiny_tokenizer())
    assert done.classifier == "BertForSequenceClassification"
    assert not done.notes
    assert torch.equal(head_logits(host, batch), wanted), "the host is as it was"
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, wanted, rtol=1e-3, atol=1e-4)
    classify = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    (answer,) = classify("a great film")
    row = models.tiny_tokenizer()("a great film", return_tensors="pt")
    chances = head_logits(host, dict(row)).softmax(-1)[0]
    assert answer["label"] == LABELS[int(chances.argmax())]
    assert answer["score"] == pytest.approx(float(chances.max()), abs=1e-4)


def test_a_classifier_that_pools_otherwise_keeps_its_head_beside_the_model(tmp_path):
    from deltatune.store.merged_model import save_merged

    done = save_merged(classifier_host("bert", "mean", False), "a", tmp_path / "out")
    assert done.classifier is None
    assert "pools otherwise" in done.notes[0]
    assert AutoModel.from_pretrained(tmp_path / "out").config.architectures == ["BertModel"]


# ---- disabled, parameters, tables


def test_disabled_is_the_bare_base_for_a_block():
    host = lm_host("llama")
    adapted = logits(host.model)
    bare = logits(models.tiny("llama", "lm"))
    with host.disabled():
        assert torch.equal(logits(host.model), bare)
    assert torch.equal(logits(host.model), adapted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_print_trainable_parameters_says_what_peft_says(kind, capsys):
    peft = pytest.importorskip("peft")
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"]}[kind]
    sites = {"bert": "*.attn.{q,v}", "gpt2": "*.attn.qkv"}[kind]
    head = "classify" if kind == "bert" else "lm"
    task = "SEQ_CLS" if kind == "bert" else "CAUSAL_LM"
    config = peft.LoraConfig(r=4, target_modules=targets, task_type=task, fan_in_fan_out=kind == "gpt2")
    peft.get_peft_model(models.tiny(kind, head), config).print_trainable_parameters()
    theirs = capsys.readouterr().out
    host = deltatune.Host(models.tiny(kind, head))
    host.attach("a", LoRA(r=4, sites=sites))
    host.print_trainable_parameters()
    assert capsys.readouterr().out == theirs
    with host.disabled():
        host.print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: 0 ||")


def test_quantised_weights_count_as_the_values_that_they_are(capsys):
    model = models.tiny("llama", "lm")
    size = sum(parameter.numel() for parameter in model.parameters())
    deltatune.quantize_(model, "nf4")
    host = deltatune.Host(model)
    count = host.attach("a", LoRA(r=2)).count
    host.print_trainable_parameters()
    assert f"trainable params: {count:,} || all params: {size + count:,} ||" in capsys.readouterr().out


def test_tables_for_notebooks_are_escaped():
    page = html_table("<b>&", ("<i>",), [("<script>", 3)], "<u>")
    assert "<b>&amp;" not in page.replace("<p><b>", "")
    assert all(text in page for text in ("&lt;b&gt;&amp;", "&lt;i&gt;", "&lt;script&gt;", "&lt;u&gt;", "<td>3</td>"))
    host = lm_host("llama", "LoRA(r=4)")
    adapter = host.attach("b", LoRA(r=2), head=False)
    for page in (host._repr_html_(), adapter._repr_html_()):
        assert page.startswith("<div>")
        assert page.count("<table>") == 1
        assert "color" not in page, "the notebook's own colours, light or dark"
    assert "LoRA(r=4)" in host._repr_html_()
    assert "active: a" in host._repr_html_()
    host.detach("a")
    host.detach("b")
    assert "<table>" not in host._repr_html_()


# ---- options


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LoRA(rank=8), r"LoRA has no option 'rank'; it is called 'r' here\noptions of LoRA: r, alpha"),
        (lambda: LoRA(alhpa=8), "LoRA has no option 'alhpa', did you mean 'alpha'"),
        (lambda: deltatune.OFT(oft_block_size=4), r"OFT has no option 'oft_block_size'; it is called 'block' here"),
        (lambda: deltatune.VBLoRA(num_vectors=9), r"'num_vectors'; it is called 'vectors' here"),
        (lambda: LoRA(rank=8, alhpa=8), "'rank'; it is called 'r' here; LoRA has no option 'alhpa'"),
        (lambda: Houlsby(sizes=3), "Houlsby has no option 'sizes', did you mean 'size'"),
        (lambda: Settings(lr=1e-3), "Settings has no option 'lr'; it is called 'learning_rate' here"),
        (lambda: deltatune.Classify(labls=("a", "b")), "Classify has no option 'labls', did you mean 'labels'"),
        (lambda: HeadConfig(poolin="cls"), "HeadConfig has no option 'poolin', did you mean 'pooling'"),
    ],
)
def test_an_unknown_option_names_the_nearest(call, words):
    with pytest.raises(DeltatuneError, match=words) as error:
        call()
    assert isinstance(error.value, TypeError), "what Python raises for it"


def test_every_method_names_its_options():
    from deltatune.core.registry import option_names, registry

    for name, maker in registry().items():
        with pytest.raises(DeltatuneError, match=rf"{name} has no option 'of_nobody'") as error:
            maker(of_nobody=1)
        assert all(option in str(error.value) for option in option_names(maker))


def test_what_training_takes_is_at_the_top():
    for name in ("Classify", "Head", "HeadConfig", "Settings", "train"):
        assert name in deltatune.__all__
        assert getattr(deltatune, name).__module__.startswith("deltatune.")
