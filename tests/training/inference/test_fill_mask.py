"""Blanks filled by a masked language model: equal to transformers' pipeline, with an adapter, and by command."""

import json

import pytest
import torch
from transformers import pipeline

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.training.inference.fill_mask import fill_masks, recall_at
from support import models
from support.command_line import ran

TEXTS = ["the film is {mask} and good", "{mask}", "it was a very [MASK] plot", "{mask} is [MASK] the film"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    models.tiny("bert", "lm").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    return folder


def mlm_host():
    return deltatune.Host(models.tiny("bert", "lm", dropout=False))


def test_words_are_those_of_the_pipeline():
    host, tokenizer = mlm_host(), models.tiny_tokenizer()
    peer = pipeline("fill-mask", model=host.model, tokenizer=tokenizer, device="cpu")
    answers = fill_masks(host, tokenizer, TEXTS, top=4, batch_size=3)
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = peer(text.replace("{mask}", "[MASK]"), top_k=models.VOCABULARY)
        masks = expected if isinstance(expected[0], list) else [expected]
        assert len(answer["masks"]) == len(masks)
        for ours, theirs in zip(answer["masks"], masks, strict=True):
            words = [row for row in theirs if not row["token_str"].startswith("[")][:4]
            assert [word["score"] for word in ours] == pytest.approx([row["score"] for row in words], rel=1e-4)
            assert ours[0]["word"] == words[0]["token_str"]
        assert "mask" not in answer["filled"].lower()


def test_a_batch_and_padding_change_nothing():
    host, tokenizer = mlm_host(), models.tiny_tokenizer()
    together = fill_masks(host, tokenizer, TEXTS)
    alone = [fill_masks(host, tokenizer, [text])[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert [w["score"] for m in one["masks"] for w in m] == pytest.approx(
            [w["score"] for m in other["masks"] for w in m], rel=1e-4
        )


@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prompt(length=3)"])
def test_an_adapter_changes_the_words_and_its_weight_scales_that(method):
    host, tokenizer = mlm_host(), models.tiny_tokenizer()
    host.attach("a", deltatune.parse(method), head=False)
    with torch.no_grad():
        for value in host.adapters["a"].parameters():
            value.normal_(generator=torch.Generator().manual_seed(1))
    bare, adapted = (fill_masks(host, tokenizer, TEXTS, name=name) for name in (None, "a"))
    assert bare != adapted
    if method.startswith("LoRA"):
        off = fill_masks(host, tokenizer, TEXTS, name="a", weight=0.0)
        assert [row["filled"] for row in off] == [row["filled"] for row in bare]


def test_the_rank_of_a_word():
    host, tokenizer = mlm_host(), models.tiny_tokenizer()
    (answer,) = fill_masks(host, tokenizer, TEXTS[:1], top=models.VOCABULARY)
    words = [word["word"] for word in answer["masks"][0]]
    assert not any(word.startswith("[") for word in words)
    ranks = [row["rank"] for row in fill_masks(host, tokenizer, TEXTS[:1] * 3, words=["film", "plot", "good bad"])]
    assert ranks == [1 + words.index("film"), 1 + words.index("plot"), None]
    assert [recall_at(ranks, k) for k in (0, models.VOCABULARY)] == [0.0, pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["{mask}", "no blank"], {}, r"row 1 has no mask: 'no blank'"),
        (["good " * 200 + "{mask}"], {}, "row 7 has 203 tokens; the model takes"),
        (["{mask} {mask}"], {"words": ["good"]}, "row 7 has 2 masks, and its word is that of one"),
        (["{mask}"], {"top": 0}, "at least one word"),
    ],
)
def test_what_cannot_be_filled_is_named(texts, options, message):
    first = 0 if len(texts) > 1 else 7
    with pytest.raises(DeltatuneError, match=message):
        fill_masks(mlm_host(), models.tiny_tokenizer(), texts, first=first, **options)


def test_predict_fills_lines_and_ranks_labels(folder, tmp_path):
    done = ran("predict", "--task", "fill", "--model", folder, "--top", "2", stdin="the {mask} is good\na [MASK]\n")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert rows[0]["text"] == "the {mask} is good"
    assert [len(words) for row in rows for words in row["masks"]] == [2, 2]
    word = rows[0]["masks"][0][0]["word"]
    labelled = tmp_path / "rows.jsonl"
    labelled.write_text(
        json.dumps({"text": "the {mask} is good", "obj_label": word, "masks": 1}) + "\n", encoding="utf-8"
    )
    done = ran("predict", "--task", "fill", "--model", folder, "--label", "obj_label", labelled)
    row = json.loads(done.out)
    assert (row["rank"], row["given_masks"]) == (1, 1)
    assert "P@1 1.000, P@5 1.000 of 1 text" in done.err


@pytest.mark.slow
def test_predict_says_what_fill_needs(folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a {mask}\n" * 40 + "nothing\n", encoding="utf-8")
    for argv, message in [
        ((), "--task fill needs a masked language model: --model MODEL, or --adapter FOLDER"),
        (("--model", folder), "row 40 has no mask: 'nothing'"),
        (("--model", folder, "--weight", "0.5"), "--weight 0.5 is an adapter's, and there is none"),
        (("--model", folder, "--label", "x"), "--label x: row 0 has None there"),
        (("--model", folder, "--part", "mood"), "--part is for a task that is trained"),
        (("--model", folder, "--set", "beams=2"), "--set is for a task that is trained"),
    ]:
        done = ran("predict", "--task", "fill", *argv, texts)
        assert (done.code, message in done.err) == (2, True), done.err
    assert "only fill and generate are named here" in ran("predict", "--task", "filll", "--model", folder, texts).err
    assert "name a trained adapter with --adapter" in ran("predict", texts).err
    assert "--label is for --task fill" in ran("predict", "--adapter", "x", "--label", "y", texts).err
    assert "--top is for --task fill" in ran("predict", "--adapter", "x", "--top", "3", texts).err
    late = ran("predict", "--task", "fill", "--model", folder, texts).err
    assert "counted from 0 here" not in late  # the row's number is that in the file


@pytest.mark.parametrize("name", ["texts.txt", "-"])
def test_a_text_may_begin_with_its_mask(folder, tmp_path, name):
    (tmp_path / "texts.txt").write_text("{mask} is good\n", encoding="utf-8")
    file = name if name == "-" else tmp_path / name
    done = ran("predict", "--task", "fill", "--model", folder, file, stdin="{mask} is good\n")
    assert done.code == 0, done.err
    assert json.loads(done.out)["text"] == "{mask} is good"
