"""Published prompts: their templates and words are whole, and each data set finds those of its classes."""

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.published.class_aliases import ALIASES
from deltatune.prompting.published.published_prompt import PublishedPrompt
from deltatune.prompting.published_prompts import (
    PUBLISHED_PROMPTS,
    ending_with_blank,
    find_prompts,
    published_prompt,
    with_columns,
)
from deltatune.tasks.prompts.templates import Template

SENTIMENT = ("negative", "positive")


def names(prompts: list[PublishedPrompt]) -> list[str]:
    return [prompt.name for prompt in prompts]


@pytest.mark.parametrize("prompt", PUBLISHED_PROMPTS, ids=lambda prompt: prompt.name)
def test_a_published_prompt_is_whole(prompt: PublishedPrompt) -> None:
    """Each template parses, names the texts that there are and no other; each class has words, no two the same."""
    letters = ["text"] if len(prompt.texts) == 1 else ["a", "b", "c"][: len(prompt.texts)]
    assert prompt.templates
    for template in prompt.templates:
        assert sorted(Template(template).columns) == letters
        assert Template(with_columns(template, prompt.texts, prompt.texts)).columns
    words = [word for class_words in prompt.words.values() for word in class_words]
    assert all(prompt.words.values())
    assert all(words)
    assert len(set(words)) == len(words)
    assert all(name == name.lower() and name.isalnum() for name in prompt.datasets)
    assert prompt.source.startswith("https://arxiv.org/abs/")


def test_names_are_unique_and_unknown_ones_name_the_nearest() -> None:
    assert len({prompt.name for prompt in PUBLISHED_PROMPTS}) == len(PUBLISHED_PROMPTS)
    assert published_prompt("pet-agnews").words["Sci/Tech"] == ("Tech",)
    with pytest.raises(DeltatuneError, match="did you mean 'pet-agnews'"):
        published_prompt("pet-agnew")


def test_every_published_class_is_a_class_of_some_prompt() -> None:
    classes = {label for prompt in PUBLISHED_PROMPTS for label in prompt.words}
    assert set(ALIASES) <= classes


@pytest.mark.parametrize("prompt", PUBLISHED_PROMPTS, ids=lambda prompt: prompt.name)
def test_a_prompt_is_found_by_its_own_classes_in_any_order(prompt: PublishedPrompt) -> None:
    labels = sorted(prompt.words)
    found = find_prompts(labels, len(prompt.texts), prompt.datasets[0])
    (mine,) = [match for match in found if match.name == prompt.name]
    assert list(mine.words) == labels
    assert dict(mine.words) == dict(prompt.words)


@pytest.mark.parametrize("labels", [SENTIMENT, ("NEG", "POS"), ("Negative", "Positive"), ("pos", "neg")])
def test_sentiment_is_found_by_its_names_alone(labels: tuple[str, str]) -> None:
    first = find_prompts(labels, 1)[0]
    negative = next(label for label in labels if label.lower().startswith("neg"))
    assert first.words[negative] == ("terrible",)
    assert first.templates == ("{text} It was {mask}.",)


def test_the_name_of_the_data_set_breaks_ties() -> None:
    labels = ("entailment", "not_entailment")
    assert names(find_prompts(labels, 2, "glue_qnli"))[0] == "lm-bff-qnli"
    assert names(find_prompts(labels, 2, "fewglue_rte"))[:4] == [
        *("lm-bff-rte", "pet-rte-no-yes", "pet-rte-true-false", "in-context-rte")
    ]
    three = ("contradiction", "entailment", "neutral")
    assert names(find_prompts(three, 2, "cb"))[0] == "pet-cb-no-yes"
    assert names(find_prompts(three, 2, "snli"))[0] == "lm-bff-nli"


@pytest.mark.parametrize("labels", [("0", "1"), ("no", "yes"), ("true", "false"), ("a", "b")])
def test_classes_that_say_nothing_need_the_name(labels: tuple[str, str]) -> None:
    """Numbers may be any classes: a spam filter must not be asked whether the message was terrible."""
    assert find_prompts(labels, 1, "spam") == []
    assert find_prompts(labels, 2, "pairs") == []


def test_numbers_are_classes_in_the_published_order() -> None:
    assert dict(find_prompts(("0", "1"), 1, "SST-2")[0].words) == {"0": ("terrible",), "1": ("great",)}
    assert dict(find_prompts(("0", "1", "2"), 2, "mnli")[0].words) == {"0": ("Yes",), "1": ("Maybe",), "2": ("No",)}
    from_one = find_prompts(("1", "2", "3", "4"), 1, "ag_news")[0]
    assert from_one.words["4"] == ("Tech",)
    assert from_one.words == {f"{i + 1}": find_prompts(tuple("0123"), 1, "agnews")[0].words[f"{i}"] for i in range(4)}
    assert find_prompts(tuple("012345"), 1, "trec6") == [], "two orders of TREC's numbers are published"


def test_yes_and_no_of_a_known_set_are_true_and_false() -> None:
    prompt = find_prompts(("no", "yes"), 2, "boolq")[0]
    assert dict(prompt.words) == {"no": ("No",), "yes": ("Yes",)}
    assert find_prompts(("no", "yes"), 3, "boolq") == []


def test_other_classes_find_nothing() -> None:
    assert find_prompts(("negative", "neutral", "positive"), 1) == []
    assert find_prompts(("negative", "positive"), 2) == []
    assert find_prompts(("negative", "negative"), 1) == []
    assert find_prompts((), 1) == []
    assert find_prompts(("World", "Sports", "Business", "Health"), 1) == []


def test_left_to_right_models_get_templates_that_end_with_the_blank() -> None:
    for labels, texts, name in ((SENTIMENT, 1, "sst2"), (("entailment", "not_entailment"), 2, "rte")):
        prompts = find_prompts(labels, texts, name, left_to_right=True)
        assert prompts
        assert all(Template(template).ends_with_blank for prompt in prompts for template in prompt.templates)
    assert find_prompts(SENTIMENT, 1, "sst2", left_to_right=True)[0].templates == ("{text} It was {mask}",)
    assert "lm-bff-rte" not in names(find_prompts(("entailment", "not_entailment"), 2, "rte", True))


def test_a_template_may_end_with_its_blank_if_only_punctuation_follows() -> None:
    assert ending_with_blank("{text} It was {mask}.") == "{text} It was {mask}"
    assert ending_with_blank("{text}\nanswer: {mask}") == "{text}\nanswer: {mask}"
    for template in ("{mask}: {text}", "{text} ({mask})", "[ {mask} ] {text}", "{a}? {sep} {mask}.", "{mask}."):
        assert ending_with_blank(template) == ""


def test_columns_are_put_in_by_name_or_in_order() -> None:
    template = "{a:stem}? {mask}, {b!} {b:lower}"
    assert with_columns(template, ("one", "two")) == "{one:stem}? {mask}, {two!} {two:lower}"
    texts = ("passage", "question")
    assert with_columns("{a} {b}? {mask}", ("Question", "passage"), texts) == "{passage} {Question}? {mask}"
    assert with_columns("{a} {b}? {mask}", ("x", "passage"), texts) == "{x} {passage}? {mask}"
    assert with_columns("{a} {b}", ("b", "a")) == "{b} {a}"
    assert with_columns("{text} {mask}", ("review",)) == "{review} {mask}"


def test_columns_that_no_template_can_name_are_errors() -> None:
    with pytest.raises(DeltatuneError, match="needs 2 text columns; these data have 1"):
        with_columns("{a} {b} {mask}", ("only",))
    for column in ("my: text", "8", "mask", "soft", "", "{a}", "a!", " a", "a "):
        with pytest.raises(DeltatuneError, match=r"cannot stand in a template: name it in the data"):
            with_columns("{text} {mask}", (column,))
    assert with_columns("{text} {mask}", ("text", "a: b")) == "{text} {mask}", "a column that is not needed"


@pytest.mark.parametrize("column", ["Review Text", "is it spam?", "a-b", "c.d/e", "文本"])
def test_columns_may_have_blanks_and_signs_in_their_names(column: str) -> None:
    template = Template(with_columns("{text:stem}? {text!} {mask}", (column,)))
    assert template.columns == (column,)
    assert template.fill({column: "so it is."}, "yes") == "so it is? so it is. yes"


def test_patterns_become_the_published_inputs() -> None:
    """The input of PET's MNLI pattern and of LM-BFF's template, as their code makes them of a pair."""
    row = {"premise": "A dog runs!", "hypothesis": "It moves."}
    shown = {}
    for name, index in (("pet-mnli-no-yes", 1), ("lm-bff-nli", 0), ("pet-rte-no-yes", 0)):
        prompt = published_prompt(name)
        shown[name] = Template(with_columns(prompt.templates[index], tuple(row), prompt.texts)).fill(row, "Yes")
    assert shown["lm-bff-nli"] == "A dog runs? Yes, it moves."
    assert " ".join(shown["pet-mnli-no-yes"].split()) == "A dog runs? Yes, It moves."
    assert " ".join(shown["pet-rte-no-yes"].split()) == '"It moves"? Yes, "A dog runs!"'
