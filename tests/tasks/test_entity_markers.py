"""Marked entities and inputs of more than two texts."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Classify, task_from_json
from deltatune.tasks.entity_markers import mark_entities
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.tokenization import shares, tokenise
from support import vocabularies
from support.models import tiny_tokenizer

TEXT = "Bill was born in Seattle."
PLAIN = "@ Bill @ was born in # Seattle # ."
TYPED = "@ * person * Bill @ was born in # ^ city ^ Seattle # ."
BOTH = ("head", "tail")


def marked(row, mark=BOTH):
    return mark_entities([{"text": TEXT, **row}], "text", mark)[0]


@pytest.mark.parametrize(
    "row",
    [
        {"head": "Bill", "tail": "Seattle"},
        {"head": [0, 4], "tail": [17, 24]},
        {"head": "[0, 4]", "tail": "[17,24]"},
        {"head": {"start": 0, "end": 4}, "tail": {"text": " Seattle "}},
        {"text": ["Bill", "was", "born", "in", "Seattle", "."], "head": [0], "tail": [4]},
        {"text": ["Bill", "was", "born", "in", "Seattle", "."], "head": "Bill", "tail": "Seattle"},
    ],
)
def test_entities_are_marked(row):
    assert " ".join(marked(row).text.split()) == PLAIN


def test_markers_name_types():
    row = {"head": "Bill", "tail": "Seattle", "one": "PERSON", "other": "city"}
    result = marked(row, ("head:one", "tail:other"))
    assert result.text == TYPED
    assert result.text[: result.end].endswith("Seattle #")
    row["one"] = None
    with pytest.raises(DeltatuneError, match="row 0: one is None, not the name of a type"):
        marked(row, ("head:one", "tail:other"))


def test_nested_entities_keep_their_markers_apart():
    row = {"text": "the University of Paris", "head": "University of Paris", "tail": "Paris"}
    assert marked(row).text == "the @ University of # Paris # @"
    assert marked({**row, "head": "Paris", "tail": "University of Paris"}).text == "the # University of @ Paris @ #"
    assert marked({**row, "head": "Paris", "tail": "Paris"}).text == "the University of @ # Paris # @"


def test_whole_words_come_first():
    assert marked({"text": "Billing Bill", "head": "Bill"}, ("head",)).text == "Billing @ Bill @"
    assert marked({"text": "我在北京工作", "head": "北京"}, ("head",)).text == "我在 @ 北京 @ 工作"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"head": "Jane"}, "row 0: head 'Jane' does not occur in the text"),
        ({"head": "bill"}, "does not occur in the text, did you mean 'Bill'"),
        (
            {"text": "Bill met Bill", "head": "Bill"},
            r"occurs 2 times in the text, at characters 0, 9: give \[start, end\]",
        ),
        ({"head": ""}, "is empty"),
        ({"head": None}, "is neither a text nor numbers"),
        ({"head": [0, 99]}, r"is not \[start, end\] in a text of 25 characters"),
        ({"head": [4, 4]}, r"is not \[start, end\]"),
        ({"head": [4, 5]}, r"is not \[start, end\]"),
        ({"head": [True, 4]}, "is neither a text nor numbers"),
        ({"text": ["a", "b", "c"], "head": [0, 2]}, "is not a list of words that follow one another"),
        ({"text": ["a", "b", "c"], "head": [2, 3]}, "is outside of the text's 3 words"),
        ({"text": 5, "head": "a"}, "5 is neither a text nor a list of words"),
    ],
)
def test_an_entity_that_cannot_be_marked_is_named(row, message):
    with pytest.raises(DeltatuneError, match=message):
        marked(row, ("head",))


def punctuation_tokenizer():
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "@",
        "*",
        "#",
        "^",
        "bill",
        "was",
        "born",
        "in",
        "seattle",
        ".",
        "person",
        "city",
    ]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_a_task_encodes_marked_texts():
    task = Classify(labels=("born", "died"), mark=BOTH, max_length=16)
    row = {"text": TEXT.lower(), "head": "bill", "tail": [17, 24], "label": "born"}
    tokenizer = punctuation_tokenizer()
    encoded = task.encode([row], tokenizer)
    assert tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] @ bill @ was born in # seattle # . [SEP]"
    assert encoded[0]["label"] == 0
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task
    assert row_hashes(task, [row]) != row_hashes(task, [{**row, "tail": "born"}])


def test_an_entity_that_is_cut_off_is_named():
    rows = [{"text": "bill was born in seattle . " + "was " * 30, "head": "bill", "tail": "seattle"}]
    kept = Classify(labels=("a", "b"), mark=BOTH, max_length=11).encode(rows, punctuation_tokenizer(), labelled=False)
    assert kept.truncated == 1
    rows += [{"text": "was " * 30 + "born in seattle", "head": "born", "tail": "seattle"}]
    with pytest.raises(DeltatuneError, match=r"row 1: an entity is cut off by max_length=11\nraise max_length"):
        Classify(labels=("a", "b"), mark=BOTH, max_length=11).encode(rows, punctuation_tokenizer(), labelled=False)


def test_a_tokenizer_without_the_markers_is_refused():
    with pytest.raises(DeltatuneError, match="this tokenizer does not know"):
        Classify(mark=("head",)).encode([{"text": "good", "head": "good"}], tiny_tokenizer(), labelled=False)


# --- more than two texts ---


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "llama", "t5", "unigram"])
def test_two_texts_are_the_tokenizers_pair_and_more_go_on_like_it(kind):
    tokenizer = vocabularies.tokenizer(kind)
    texts = ("The reader forgot", "Nobody liked the film", "in 1998")
    pair = tokenizer(*texts[:2])
    (row,) = tokenise([texts], tokenizer)
    own = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    extra = len(row["input_ids"]) - len(pair["input_ids"]) - len(own[2])
    assert extra >= 0
    end = len(pair["input_ids"]) - (1 if kind in ("wordpiece", "t5") else 0)
    assert row["input_ids"][:end] == pair["input_ids"][:end]
    assert [token for token in row["input_ids"] if token in own[2]][-1] == own[2][-1]
    if "token_type_ids" in pair:
        assert row["token_type_ids"][:end] == pair["token_type_ids"][:end]
        assert set(row["token_type_ids"][end:]) <= {pair["token_type_ids"][-1]}


def test_bert_separates_all_texts():
    tokenizer = punctuation_tokenizer()
    (row,) = tokenise([("bill was", "born", "in seattle")], tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "[CLS] bill was [SEP] born [SEP] in seattle [SEP]"
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_the_longest_texts_are_cut_first():
    tokenizer = punctuation_tokenizer()
    task = Classify(text=("a", "b", "c"), max_length=12)
    encoded = task.encode([{"a": "bill " * 9, "b": "was", "c": "born " * 9}], tokenizer, labelled=False)
    assert tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] bill bill bill bill [SEP] was [SEP] born born born [SEP]"
    assert encoded.truncated == 1
    with pytest.raises(DeltatuneError, match="max_length=6 leaves no room for 3 texts: 4 tokens"):
        Classify(text=("a", "b", "c"), max_length=6).encode(
            [{"a": "bill " * 9, "b": "was", "c": "x"}], tokenizer, labelled=False
        )


@pytest.mark.parametrize("lengths", [(5, 5, 5), (9, 0, 1), (1, 1, 1), (0, 0, 20), (7, 8, 9, 1)])
@pytest.mark.parametrize("room", [4, 5, 6, 12, 100])
def test_shares_use_all_the_room(lengths, room):
    kept = [len(part) for part in shares(lengths, room, [[0] * length for length in lengths])]
    assert sum(kept) == min(room, sum(lengths))
    assert all(size == length or size >= max(kept) - 1 for size, length in zip(kept, lengths, strict=True)), (
        "only the longest are cut"
    )


def test_words_in_lists_are_one_text():
    rows = [{"text": ["bill", "was", "born"], "other": "in seattle"}]
    task = Classify(text=("text", "other"))
    tokenizer = punctuation_tokenizer()
    encoded = task.encode(rows, tokenizer, labelled=False)
    assert encoded[0]["input_ids"] == tokenizer("bill was born", "in seattle")["input_ids"]
    with pytest.raises(DeltatuneError, match=r"row 0: text is \[\], not a text"):
        task.encode([{"text": [], "other": "x"}], tokenizer, labelled=False)
