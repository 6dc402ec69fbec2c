"""Rows for new tokens: what each is made of, and that nothing else of the model changes."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, MarianConfig, MarianMTModel

from deltatune import Host, LoRA
from deltatune.core.errors import DeltatuneError
from deltatune.training.tokenizer_extension import add_tokens
from deltatune.training.tokenizer_extension.learn_tokens import LearnedTokens, learn_tokens
from deltatune.training.tokenizer_extension.resize_embeddings import old_pieces, resize_embeddings_
from support import models, vocabularies

NEW = ("goodbad", "##abc", "是")
SOURCES = ["good", "##b", "##a", "##d"], ["##a", "##b", "##c"], []
FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "gpt_neox", "gptj", "gemma", "opt", "t5", "bart"]


@pytest.fixture(scope="module")
def merged():
    """The tokenizer of the tiny models with three more tokens; the last one's text was unknown to it."""
    return add_tokens(models.tiny_tokenizer(), LearnedTokens("WordPiece", NEW))[0]


@pytest.fixture(scope="module")
def sources(merged):
    return [merged.convert_tokens_to_ids(pieces) for pieces in SOURCES]


def tables(model):
    """Input rows, output rows and biases of the head, by hand."""
    head = model.get_output_embeddings()
    found = {"input": model.get_input_embeddings().weight, "output": head.weight}
    return found | ({"bias": head.bias} if head.bias is not None else {})


def copies(model):
    return {name: table.detach().clone() for name, table in tables(model).items()}


V = models.VOCABULARY


def test_the_old_pieces_of_new_tokens(merged, sources):
    assert old_pieces(merged, V) == sources


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_row_is_the_mean_of_the_rows_of_its_old_pieces(family, merged, sources):
    model = models.tiny(family, "lm")
    before = copies(model)
    assert resize_embeddings_(model, merged, V) == V + 3 == model.config.vocab_size
    for name, table in tables(model).items():
        old = before[name]
        assert len(table) == V + 3
        assert torch.equal(table[:V], old), name
        wanted = torch.stack([old[ids].mean(0) if ids else old.mean(0) for ids in sources])
        torch.testing.assert_close(table[V:], wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_stays_tied_and_others_stay_apart(family, merged):
    model = models.tiny(family, "lm")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    resize_embeddings_(model, merged, V)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_both_sorts_of_heads_are_among_the_families():
    tied = {
        family: model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for family in FAMILIES
        for model in [models.tiny(family, "lm")]
    }
    assert {tied["bert"], tied["gpt2"], tied["t5"]} == {True}
    assert {tied["llama"], tied["gptj"]} == {False}


@pytest.mark.parametrize("init", ["pieces", "mean", "normal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_old_texts_are_read_as_before_and_old_logits_stay(family, init, merged):
    model = models.tiny(family, "lm")
    batch = models.inputs(family)
    with torch.no_grad():
        wanted = model(**batch).logits
        resize_embeddings_(model, merged, V, init=init)
        found = model(**batch).logits
    assert found.shape[-1] == V + 3
    torch.testing.assert_close(found[..., :V], wanted)
    assert found.isfinite().all()


def test_the_head_of_bert_has_one_bias(merged):
    model = models.tiny("bert", "lm")
    resize_embeddings_(model, merged, V)
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    assert len(model.cls.predictions.bias) == V + 3


def test_a_bias_beside_the_head_grows_too(merged, sources):
    config = MarianConfig(
        vocab_size=V, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    model = MarianMTModel(config)
    bias = torch.randn(1, V)
    model.final_logits_bias.copy_(bias)
    resize_embeddings_(model, merged, V)
    assert torch.equal(model.final_logits_bias[:, :V], bias)
    wanted = torch.stack([bias[0, ids].mean() if ids else bias.mean() for ids in sources])
    torch.testing.assert_close(model.final_logits_bias[0, V:], wanted)


def test_a_model_without_a_head_grows(merged, sources):
    model = models.tiny("llama")
    old = model.get_input_embeddings().weight.detach().clone()
    resize_embeddings_(model, merged, V)
    torch.testing.assert_close(model.get_input_embeddings().weight[V], old[sources[0]].mean(0))


def test_mean(merged):
    model = models.tiny("llama", "lm")
    before = copies(model)
    resize_embeddings_(model, merged, V, init="mean")
    for name, table in tables(model).items():
        torch.testing.assert_close(table[V:], before[name].mean(0).expand(3, -1))


def test_normal_has_the_mean_and_covariance_that_transformers_uses():
    model, many = models.tiny("llama", "lm"), add_tokens(models.tiny_tokenizer(), _many(4000))[0]
    model.get_input_embeddings().weight.data *= torch.linspace(0.1, 3, 32)  # unlike in its directions
    old = model.get_input_embeddings().weight.detach().clone()
    resize_embeddings_(model, many, V, init="normal")
    new = model.get_input_embeddings().weight[V:].double()
    wanted = (old - old.mean(0)).double()
    wanted = wanted.T @ wanted / V
    off = new - old.double().mean(0)
    found = off.T @ off / len(new) / 1e-9
    assert (found - wanted).norm() < 0.15 * wanted.norm()
    assert off.abs().max() > 0


def _many(count):
    return LearnedTokens("WordPiece", tuple(chr(0x4E00 + i) for i in range(count)))


def test_normal_depends_on_the_seed_alone(merged):
    rows = []
    for seed in (0, 0, 1):
        model = models.tiny("llama", "lm")
        torch.rand(len(rows))
        resize_embeddings_(model, merged, V, init="normal", seed=seed)
        rows.append(tables(model)["input"][V:])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0][0], rows[0][1])


def test_rows_that_fill_up_to_a_multiple_have_the_mean(merged):
    model = models.tiny("llama", "lm")
    before = copies(model)
    assert resize_embeddings_(model, merged, V, pad_to_multiple_of=16) == 112 == model.config.vocab_size
    for name, table in tables(model).items():
        assert len(table) == 112
        torch.testing.assert_close(table[V + 3 :], before[name].mean(0).expand(8, -1))


def test_rows_that_the_model_has_already_are_used(merged, sources):
    model = models.tiny("llama", "lm")
    model.resize_token_embeddings(110, mean_resizing=False)
    before = copies(model)
    assert resize_embeddings_(model, merged, V) == 110
    for name, table in tables(model).items():
        torch.testing.assert_close(table[V], before[name][sources[0]].mean(0))
        assert torch.equal(table[V + 3 :], before[name][V + 3 :])


def test_half_precision_stays_and_means_are_made_in_full(merged, sources):
    model = models.tiny("llama", "lm").half()
    old = model.get_input_embeddings().weight.detach().clone()
    resize_embeddings_(model, merged, V)
    table = model.get_input_embeddings().weight
    assert table.dtype == torch.float16
    assert torch.equal(table[V], old[sources[0]].float().mean(0).half())


@pytest.mark.parametrize("trains", [True, False])
def test_what_trains_and_what_is_frozen_stays_so(trains, merged):
    model = models.tiny("llama", "lm").requires_grad_(trains)
    resize_embeddings_(model, merged, V)
    assert {parameter.requires_grad for parameter in model.parameters()} == {trains}
    if trains:
        ids = torch.tensor([[10, V, V + 2]])
        model(ids, labels=ids).loss.backward()
        assert model.get_input_embeddings().weight.grad[V].abs().sum() > 0


def test_a_grown_model_is_the_same_from_a_folder(merged, tmp_path):
    model = models.tiny("gpt2", "lm")
    resize_embeddings_(model, merged, V, pad_to_multiple_of=8)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[10, V, V + 2]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_old_pieces_are_how_the_old_tokenizer_cuts_the_text(kind):
    old = vocabularies.tokenizer(kind)
    merged, growth = add_tokens(old, learn_tokens(vocabularies.NEW, old, 120))
    pieces = old_pieces(merged, growth.old_size)
    assert len(pieces) == len(growth.added)
    cut = old.backend_tokenizer.model.tokenize
    checked = 0
    for piece, found in zip(growth.added, pieces, strict=True):
        if not piece.startswith("##") and (kind != "suffix" or piece.endswith("</w>")):
            ids = [token.id for token in cut(piece.removesuffix("</w>"))]
            assert found == [i for i in ids if i != old.unk_token_id]
            checked += 1
    assert checked > 10


def test_an_added_token_is_made_of_its_text(merged):
    more = copy.deepcopy(merged)
    more.add_special_tokens({"additional_special_tokens": ["(good film)"]})
    wanted = merged.convert_tokens_to_ids(["(", "good", "film", ")"])
    assert old_pieces(more, V)[-1] == wanted


def test_what_does_not_fit_is_refused(merged):
    model = models.tiny("bert", "lm")
    with pytest.raises(DeltatuneError, match=r"init='zero'.*pieces(.|\n)*pad_to_multiple_of=0(.|\n)*old_size=999"):
        resize_embeddings_(model, merged, 999, init="zero", pad_to_multiple_of=0)
    small = vocabularies.tokenizer("unigram")
    with pytest.raises(DeltatuneError, match="fewer than the model's 101"):
        resize_embeddings_(model, small, V)
    assert model.get_input_embeddings().num_embeddings == V
    host = Host(model)
    host.attach("a", LoRA())
    with pytest.raises(DeltatuneError, match="adapters attached"):
        resize_embeddings_(model, merged, V)


def test_a_model_that_the_resizing_leaves_half_done_is_refused(merged, monkeypatch):
    model = models.tiny("llama", "lm")
    head = model.get_output_embeddings()
    monkeypatch.setattr(type(model), "set_output_embeddings", lambda *_: None)
    with pytest.raises(DeltatuneError, match="except for output"):
        resize_embeddings_(model, merged, V)
    assert len(head.weight) == V
