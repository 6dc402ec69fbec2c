"""Label words: what is refused, what a row becomes, and how scores become answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError
from deltatune.tasks import task_from_json
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from support import vocabularies
from support.label_words import LEFT_TO_RIGHT, reader, rows, task


def error_of(**fields):
    with pytest.raises(DeltatuneError) as caught:
        LabelWords(**{"labels": ("pos", "neg"), "template": "{text} It was {mask}", **fields})
    return str(caught.value)


def encoding_error(kind, label_task, given=None):
    with pytest.raises(DeltatuneError) as caught:
        encode(kind, label_task, given)
    return str(caught.value)


def encode(kind, label_task, given=None, **options):
    tokenizer = reader(kind)[1]
    return label_task.encode(rows() if given is None else given, tokenizer, joined=kind in LEFT_TO_RIGHT, **options)


def test_words_are_read_in_every_form_that_users_write():
    plain = LabelWords(labels=("pos", "neg"), template="{text} {mask}", words=(("good", "fine"), ("bad",)))
    for words in (
        {"neg": "bad", "pos": ["good", "fine"]},
        [["good", "fine"], "bad"],
        (("good", " fine"), "bad"),
    ):
        assert LabelWords(labels=["pos", "neg"], template="{text} {mask}", words=words) == plain
    named = LabelWords(labels=("not_spam", "Spam"), template="{text} {mask}")
    assert named.words == (("not spam",), ("Spam",))
    assert task_from_json(json.loads(json.dumps(plain.to_json()))) == plain
    shown = replace(plain, demonstrations=[["a", "b"]], calibration=[[0.5, -0.5]], more_templates=["{text}: {mask}"])
    assert task_from_json(json.loads(json.dumps(shown.to_json()))) == shown
    assert plain.text == ("text",)


def test_one_error_lists_all_that_is_wrong_with_a_task():
    message = error_of(
        template="{text} of {label} and {txt} {mask}",
        more_templates=("{text}", "{2} {text} {mask}"),
        text=("text",),
        words={"pos": "good", "bad": "bad"},
        calibration=((1.0,),),
        metric="accurcy",
    )
    for problem in (
        "names 'label', the column of the labels, so it would give the answer away",
        "names 'txt', which is not a text column, did you mean 'text'?",
        "one {mask}, for the answer; this one has 0",
        "the same number of virtual tokens",
        "words are given for 'bad', which is not a class",
        "the class 'neg' has no word",
        "calibration must give a number for each of the 2 classes",
        "'accurcy' is not a metric",
    ):
        assert problem in message
    assert "such as template='{text} It was {mask}.'" in error_of(template="")
    assert "the word 'good' is of 'pos' and of the class 'neg'" in error_of(words=(("good",), ("good",)))
    assert "a word of the class 'neg' is empty" in error_of(words=(("good",), ("",)))
    assert "1 classes have words, and the task has 2 classes" in error_of(words=(("good",),))
    assert "the class 'neg' has no word" in error_of(words=(("good",), ()))
    assert "labels must name at least two" in error_of(labels=("pos",), words=(("good",),))
    assert "mark is for a classification with a head" in error_of(mark=("a",), text=("text", "a"))


def test_words_that_a_tokenizer_does_not_know_or_cannot_tell_apart_are_errors():
    message = encoding_error("bert", task(words=(("film", "日"), ("Film", "[SEP]"))))
    assert "the tokenizer does not know the word '日'; choose another word" in message
    assert "the words 'film' and 'Film' are the same tokens; choose another word" in message
    assert "the word '[SEP]' has a special token of the tokenizer" in message


def test_templates_that_a_left_to_right_model_cannot_read_are_errors():
    message = encoding_error("gpt2", task("{mask}: {text}", more_templates=("{text} {mask}",)))
    assert "begins with its blank, and a left-to-right model reads nothing before it; put text first" in message
    assert encode("bert", task("{mask}: {text}"))
    assert encode("gpt2", task("{mask}: {text}", demonstrations=(("film: A writer.",),)))
    message = encoding_error("llama", task("{2} {text} {mask} {2}"))
    assert "virtual tokens behind its blank, which a left-to-right model would have to predict" in message


def test_rows_are_named_in_errors():
    given = [{"text": "film", "label": "pos"}, {"text": None, "label": "neg"}, {"text": ["a", "b"], "label": "pos"}]
    assert encoding_error("bert", task(), given).startswith("row 1: text is None, not a text")
    long = [{"text": "film " * n, "label": "pos"} for n in (1, 99, 1, 98)]
    message = encoding_error("bert", task("{text!} It was {mask}"), long)
    assert message.splitlines()[0].startswith("row 1: the template '{text!} It was {mask}' is ")
    assert message.splitlines()[1].startswith("row 3: ")
    assert "raise max_length" in message
    assert "no column 'text' in row 0" in encoding_error("bert", task(), [{"txt": "a", "label": "pos"}])
    assert "row 0: 'what' is not a label" in encoding_error("bert", task(), [{"text": "a", "label": "what"}])
    assert "max_length=3 leaves no room for a text" in encoding_error("bert", replace(task(), max_length=3))
    for text in ("", "   "):
        assert encode("bert", task(), [{"text": text, "label": "pos"}])[0]["prompt"]
    empty = encode("gpt2", task("{text} {mask}"), [{"text": "", "label": "pos"}])[0]
    assert empty["prompt"] == [reader("gpt2")[1].bos_token_id]  # a text starts there
    with pytest.raises(DeltatuneError, match="row 0: nothing stands before the blank"):
        task("{text} {mask}").encode([{"text": "", "label": "pos"}], vocabularies.tokenizer("unigram"))


def test_a_prompt_that_is_longer_than_the_model_is_an_error():
    long = task(f"{'again ' * 120}{{text}} It was {{mask}}")
    assert "tokens too long for a row" in encoding_error("bert", long)
    with pytest.raises(DeltatuneError, match=r"max_length=100 cannot be used; this model takes 64 tokens"):
        encode("bert", task(), positions=64)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_the_oldest_demonstrations_go_where_there_is_no_room(kind):
    shown = tuple(f"The reader liked the film {year}. It was film" for year in ("1998", "12", "yesterday", "again"))
    few = replace(task(demonstrations=(shown,)), max_length=150)
    tokenizer = reader(kind)[1]
    short, long = encode(kind, few, [{"text": "A film", "label": "pos"}, {"text": "A film " * 20, "label": "pos"}])
    assert "again" in tokenizer.decode(short["prompt"])
    kept, fewer = (tokenizer.decode(row["prompt"]).count("liked") for row in (short, long))
    assert fewer < kept
    assert len(long["input_ids"]) <= 150
    assert tokenizer.decode(long["prompt"]).count("film") >= 20  # the row itself is whole
    assert "rows have no room for all of their demonstrations" in encode(kind, few, [
        {"text": "A film " * 20, "label": "pos"}
    ]).notes[0]  # fmt: skip


def test_demonstrations_of_rows_take_the_place_of_the_tasks():
    own = [{**row, DEMONSTRATIONS: [f"{row['text']} It was film"]} for row in rows()]
    encoded = encode("gpt2", task(), own)
    assert [reader("gpt2")[1].decode(row["prompt"]).count("It was") for row in encoded] == [2, 2, 2]
    assert "row 0: (demonstrations) is 'a film'; it must be a list of texts" in encoding_error(
        "gpt2", task(), [{**rows()[0], DEMONSTRATIONS: "a film"}]
    )
    several = task(demonstrations=(("a film It was film",), ("b It was film",)))
    assert "give them to every row, or to none" in encoding_error("gpt2", several, [own[0], rows()[1]])


def test_a_masked_model_reads_demonstrations_behind_the_row():
    tokenizer = reader("bert")[1]
    row = encode("bert", task(demonstrations=(("old plot", "a film"),)))[0]
    text = tokenizer.decode(row["prompt"])
    assert text.index("[MASK]") < text.index("a film") < text.index("old plot")
    assert text.count("[SEP]") == 3
    assert row["types"][:3] == [0, 0, 0]
    assert row["types"][-1] == 1


def test_scores_of_classes_by_each_scoring():
    words, tokens = torch.tensor([[-2.0, -6.0, -3.0]]), torch.tensor([[1, 2, 1]])
    of = {scoring: task(scoring=scoring).class_scores(words, tokens) for scoring in ("likelihood", "probability")}
    torch.testing.assert_close(of["likelihood"], torch.tensor([[-2.5, -3.0]]))
    expected = torch.tensor([[np.logaddexp(-2.0, -6.0), -3.0]], dtype=torch.float32)
    torch.testing.assert_close(of["probability"], expected)


def test_answers_are_calibrated_and_averaged_over_prompts():
    scores = [np.array(each, np.float32) for each in ([1, 2], [3, 0], [0, 0], [0, 4])]
    one = encode("bert", replace(task(), calibration=((1.0, -1.0),)), rows() + rows()[:1])
    np.testing.assert_allclose(
        replace(task(), calibration=((1.0, -1.0),)).collect(scores, one), [[2, 1], [4, -1], [1, -1], [1, 3]]
    )
    two = replace(task(), more_templates=("{text}: {mask}",), calibration=((0.0, 0.0), (0.0, 1.0)))
    encoded = encode("bert", two, rows()[:2])
    assert (len(encoded), encoded.examples) == (4, 2)
    probability = np.exp(two.collect(scores, encoded))
    softmax = [np.exp(each) / np.exp(each).sum() for each in ([1, 2], [3, 1], [0, 0], [0, 5])]
    np.testing.assert_allclose(probability[0], (softmax[0] + softmax[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(probability[1], (softmax[2] + softmax[3]) / 2, rtol=1e-5)
    assert two.collect([], encode("bert", two, [])).shape == (0, 2)


def test_too_long_rows_are_counted_or_refused():
    long = [{"text": "film " * 300, "label": "pos"}, *rows()]
    assert encode("bert", task(), long).truncated == 1
    assert "1 of 4 texts are longer than max_length=100 tokens, first row 0" in encoding_error(
        "bert", replace(task(), too_long="error"), long
    )
