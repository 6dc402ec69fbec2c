"""The tiny models are what the other tests take them for."""

import typing

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from support import models

KINDS = typing.get_args(models.Kind)


@pytest.mark.parametrize("head", [None, "classify", "lm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_runs_and_is_the_same_again(kind, head):
    model, again = models.tiny(kind, head), models.tiny(kind, head)
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        output = model(**models.inputs(kind, head))[0]
    assert torch.isfinite(output).all()
    if head == "classify":
        assert output.shape == (3, models.LABELS)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_padding_on_the_right_changes_nothing(kind):
    model, batch = models.tiny(kind), models.inputs(kind)
    with torch.no_grad():
        together = model(**batch)[0]
        for row, mask in enumerate(batch["attention_mask"].bool()):
            alone = model(input_ids=batch["input_ids"][row, mask][None])[0]
            assert torch.allclose(together[row, mask], alone[0], atol=1e-5)


def test_the_tokenizer_fits_the_models(tiny_tokenizer):
    assert len(tiny_tokenizer) == models.VOCABULARY
    special = tiny_tokenizer.pad_token_id, tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    assert special == (models.PAD, models.BOS, models.EOS)
    single = tiny_tokenizer("The film was NOT good, it was 7x awful!")["input_ids"]
    assert models.UNK not in single
    assert (single[0], single[-1]) == (models.BOS, models.EOS)
    pair = tiny_tokenizer("good", "bad")
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]


def test_the_folder_loads_by_name(tiny_folder, tiny_bert, tiny_tokenizer):
    model, tokenizer = AutoModel.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    text = "This plot is great"
    assert dict(tokenizer(text)) == dict(tiny_tokenizer(text))
    assert tokenizer.model_max_length == models.POSITIONS
    batch = models.inputs("bert")
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch)[0], tiny_bert()(**batch)[0])
