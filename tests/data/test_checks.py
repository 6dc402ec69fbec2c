"""Problems and remarks of tagging, extractive QA, generation and language modelling: one fault in each data set."""

import dataclasses

from deltatune.data import Data, problems, remarks

SPLITS = ("train", "validation", "test")


def make(kind, text, label, row, labels=(), **changes):
    """Data without a fault: 120 different rows in every split."""
    splits = {split: [row(f"{split}{i}", i) for i in range(120)] for split in SPLITS}
    return dataclasses.replace(Data("name", "origin", text, label, kind, labels, **splits), **changes)


def tagging_data(**changes):
    def row(name, i):
        return {"tokens": [name, "met", "Ann"], "tags": ["O", "O", "B-per"]}

    return make("tags", ("tokens",), "tags", row, ("O", "B-per", "I-per"), **changes)


def qa_data(**changes):
    def row(name, i):
        return {"question": "Who?", "context": f"{name} met Ann.", "answers": [{"text": name, "start": 0}]}

    return make("span", ("question", "context"), "answers", row, **changes)


def generation_data(**changes):
    def row(name, i):
        return {"input": f"in {name}", "output": f"out {name}", "references": [f"out {name}"]}

    return make("text", ("input",), "output", row, **changes)


def text_data(**changes):
    return make("raw", ("text",), "", lambda name, i: {"text": f"{name} " * 500}, **changes)


def with_row(data, row, split="train"):
    """One more row at the end, which is row 121."""
    return dataclasses.replace(data, **{split: [*data.splits()[split], row]})


def test_nothing_to_say_of_good_data():
    for data in (tagging_data(), qa_data(), generation_data(), text_data()):
        assert problems(data) == []
        assert remarks(data) == []


def test_every_kind_needs_rows():
    for data in (tagging_data(test=[]), qa_data(test=[]), generation_data(test=[]), text_data(test=[])):
        assert problems(data)[0].startswith("test has 0 rows; at least")
    assert problems(text_data(test=text_data().test[:1])) == []


def test_rows_in_two_splits():
    for data in (tagging_data(), qa_data(), generation_data(), text_data()):
        found = remarks(with_row(data, data.train[0], "test"))
        assert found == ["1 of 121 test rows (121) also occur in train: scores on them measure memory."]


# --- tags ---


def test_lengths_of_tags():
    assert problems(with_row(tagging_data(), {"tokens": ["a"], "tags": []})) == [
        "train: 'tokens' and 'tags' differ in length in 1 row (121): 1 tokens and 0 tags. Each token needs one tag."
    ]


def test_one_tag_only():
    data = tagging_data()
    nothing = [{**row, "tags": ["O", "O", "O"]} for row in data.train]
    assert "every word has the tag 'O': nothing can be learned" in problems(dataclasses.replace(data, train=nothing))[0]


def test_tags_that_train_lacks():
    (remark,) = remarks(with_row(tagging_data(), {"tokens": ["a", "b"], "tags": ["B-loc", "B-loc"]}, "test"))
    assert "test has tags that train does not have" in remark
    assert "'B-loc' (2 words); in 1 row (121)" in remark


def test_entities_that_do_not_begin():
    data = tagging_data()
    for tags in (["I-per", "O"], ["B-loc", "I-per"], ["O", "E-per"]):
        found = remarks(with_row(data, {"tokens": ["a", "b"], "tags": tags}))
        assert any("an entity begins without a B- tag in 1 row (121)" in remark for remark in found), tags
    good = {"tokens": list("abcd"), "tags": ["B-per", "I-per", "I-per", "O"]}
    assert remarks(with_row(data, good)) == []
    plain = [{**row, "tags": ["O", "O", "I-per"]} for row in data.train]
    found = remarks(dataclasses.replace(data, train=plain, validation=plain, test=plain, labels=("O", "I-per")))
    assert any("no tag begins with B-" in remark for remark in found)


def test_words_of_white_space():
    (remark,) = remarks(with_row(tagging_data(), {"tokens": ["a", "\u00a0"], "tags": ["O", "O"]}))
    assert remark.startswith("train: there are words of white space alone in 1 row (121): '\\xa0'.")


# --- answers ---


def test_faults_of_answers():
    row = {"question": "Who?", "context": "So Bo left.", "answers": [{"text": "Bo", "start": 2}]}
    assert problems(with_row(qa_data(), row, "test")) == [
        "test: the start of an answer is wrong in 1 row (121): 'Bo' should start at 2, where the context has ' B'; "
        "it is found at 3. Correct it, or leave it out: it is searched for."
    ]
    assert "'question' has no text in 1 row (121)" in problems(with_row(qa_data(), {**row, "question": ""}))[0]


def test_no_answers_at_all():
    data = qa_data()
    none = [{**row, "answers": []} for row in data.train]
    assert "has no answer in any row" in problems(dataclasses.replace(data, train=none))[0]


def test_remarks_on_answers():
    none = {"question": "Why?", "context": "Ann.", "answers": []}
    assert remarks(with_row(qa_data(), none)) == ["train: 1 of 121 rows (1%) have no answer in their context."]
    twice = {"question": "Who?", "context": "Ann, Ann", "answers": [{"text": "Ann", "start": 5}]}
    assert "several places of its context in 1 row (121)" in remarks(with_row(qa_data(), twice))[0]
    long = {"question": "What?", "context": "w " * 40, "answers": [{"text": ("w " * 31).strip(), "start": 0}]}
    assert "more than 30 words in 1 row (121)" in remarks(with_row(qa_data(), long))[0]


# --- outputs ---


def test_empty_outputs():
    row = {"input": "x", "output": " ", "references": [" "]}
    assert "train: column 'output' has no text in 1 row (121)" in problems(with_row(generation_data(), row))[0]
    assert problems(with_row(generation_data(), row, "test")) == []
    assert remarks(with_row(generation_data(), row, "test")) == ["test: the output is empty in 1 row (121)."]


def test_empty_inputs():
    row = {"input": "", "output": "x", "references": ["x"]}
    assert "'input' has no text in 1 row (121)" in problems(with_row(generation_data(), row, "test"))[0]


def test_one_output_for_everything():
    data = generation_data()
    same = [{**row, "output": "yes", "references": ["yes"]} for row in data.train]
    assert "every row has the output 'yes'" in problems(dataclasses.replace(data, train=same))[0]


def test_copied_outputs():
    data = generation_data()
    equal = {"input": "a b", "output": "a b ", "references": ["a b "]}
    assert remarks(with_row(data, equal)) == ["train: the output equals the input in 1 row (121)."]
    inside = [{**row, "input": f"say {row['output']} now"} if i % 2 else row for i, row in enumerate(data.train)]
    (remark,) = remarks(dataclasses.replace(data, train=inside))
    assert "word for word in 50% of the rows, 60 rows (2, 4, 6, 8, 10, and 55 more)" in remark


def test_very_long_rows():
    row = {"input": "x " * 20_000, "output": "y", "references": ["y"]}
    (remark,) = remarks(with_row(generation_data(), row))
    assert remark.startswith("train: the longest row has 40,001 characters, the median 2")
    assert remark.endswith("it is row 121.")


def test_chats_in_wrong_order():
    def row(name, i):
        turns = [{"role": "user", "content": name}, {"role": "assistant", "content": f"{name}!"}]
        return {"messages": turns, "references": [f"{name}!"]}

    data = make("text", ("messages",), "messages", row)
    assert (problems(data), remarks(data)) == ([], [])
    wrong = {"messages": [{"role": "user", "content": "a"}] * 2, "references": [""]}
    assert "two user turns follow one another in 1 row (121)" in problems(with_row(data, wrong))[0]


# --- plain text ---


def test_little_text():
    short = [{"text": f"Some words, number {i}."} for i in range(120)]
    (remark,) = remarks(text_data(train=short))
    assert remark.startswith("train has ")
    assert remark.endswith("characters in all: little to learn a language from.")
    assert "has no text in 1 row (121)" in problems(with_row(text_data(), {"text": " \n"}))[0]
