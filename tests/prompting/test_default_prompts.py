"""Default prompts: templates for any number of texts, label words of class names, and descriptions in words."""

import pytest

from deltatune.cli.options.prompt_options import split_assignments
from deltatune.core.errors import DeltatuneError
from deltatune.prompting.choose_prompts import PromptOptions, given_words, split_words
from deltatune.prompting.default_prompts import (
    class_words,
    default_templates,
    needs_description,
)
from deltatune.tasks.label_words.verbalizer import words_of_name
from deltatune.tasks.prompts.templates import Template


@pytest.mark.parametrize("left_to_right", [False, True])
@pytest.mark.parametrize(
    "columns", [("text",), ("title", "body"), ("x", "y", "z"), tuple("abcdefghijklmnopqrstuvwxyz")]
)
def test_default_templates_name_every_column(columns: tuple[str, ...], left_to_right: bool) -> None:
    templates = default_templates(columns, left_to_right)
    assert len(set(templates)) == len(templates) >= (4 if len(columns) < 3 else 2)
    for template in map(Template, templates):
        assert sorted(template.columns) == sorted(columns)
        assert template.ends_with_blank or not left_to_right


def test_no_column_or_too_many_are_errors() -> None:
    with pytest.raises(DeltatuneError, match="1 to 26 text columns; these data have 0"):
        default_templates(())
    with pytest.raises(DeltatuneError, match="these data have 27"):
        default_templates([f"c{i}" for i in range(27)])
    with pytest.raises(DeltatuneError, match="the column 'my: text' cannot stand in a template"):
        default_templates(("my: text",))
    assert default_templates(("my text",))[0] == "{my text} This is {mask}."


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("not_spam", "not spam"),
        ("NaturalPlace", "natural place"),
        ("NOT_SPAM", "not spam"),
        ("HTMLPage", "HTML page"),
        ("positive", "positive"),
        ("Positive", "Positive"),
        ("Sci/Tech", "Sci/Tech"),
        ("NUM", "NUM"),
        ("1 star", "1 star"),
        ("  two  words ", "two words"),
        ("体育_新闻", "体育 新闻"),
        ("__", ""),
    ],
)
def test_a_class_name_in_words(label: str, words: str) -> None:
    assert words_of_name(label) == words


def test_words_of_class_names() -> None:
    assert class_words(["not_spam", "spam"]) == {"not_spam": ("not spam",), "spam": ("spam",)}
    with pytest.raises(DeltatuneError, match=r"'a_b' and 'a b' have the same words \('a b'\)(?s:.*)--describe"):
        class_words(["a_b", "a b"])
    with pytest.raises(DeltatuneError, match=r"the class '---' has no word in its name(?s:.*)--describe"):
        class_words(["---", "b"])


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ("0=spam, 1=a normal message", {"0": ("spam",), "1": ("a normal message",)}),
        ("1 = fine | good ;0= bad", {"0": ("bad",), "1": ("fine", "good")}),
        ("0=spam, or junk\n1=good", {"0": ("spam, or junk",), "1": ("good",)}),
        ("0=x=1,1=y", {"0": ("x=1",), "1": ("y",)}),
        (" 0=a|a, 1=b,", {"0": ("a",), "1": ("b",)}),
    ],
)
def test_a_description_in_words(described: str, words: dict[str, tuple[str, ...]]) -> None:
    assert class_words(["0", "1"], described) == words
    assert list(class_words(["1", "0"], described)) == ["1", "0"]


def test_classes_with_commas_equals_signs_and_common_beginnings_are_told_apart() -> None:
    labels = ["1", "11", "yes, a lot", "a=b", "(.*)"]
    described = "11=eleven, 1=one, yes, a lot=much, a=b=sum, (.*)=all"
    assert class_words(labels, described) == {
        **{"1": ("one",), "11": ("eleven",), "yes, a lot": ("much",)},
        **{"a=b": ("sum",), "(.*)": ("all",)},
    }


@pytest.mark.parametrize(
    ("described", "problems"),
    [
        ("0=spam, 2=ham", ["'2' is no class", "the class '1' is left out"]),
        ("0=spam, 1=ham, 0=junk", ["the class '0' is described twice"]),
        ("0=spam", ["the class '1' is left out"]),
        ("0=spam, 1=", ["the class '1' has an empty description"]),
        ("0=spam, 1= | ", ["the class '1' has an empty description"]),
        ("spam, ham", ["'spam, ham' has no class; write class=words", "the class '0' is left out"]),
        ("zero=spam, 1=ham", ["'zero' is no class", "the class '0' is left out"]),
        ("one, 0=spam, 1=ham", ["'one' has no class"]),
        ("=", ["the class '0' is left out", "the class '1' is left out"]),
    ],
)
def test_a_description_that_does_not_fit_names_everything(described: str, problems: list[str]) -> None:
    with pytest.raises(DeltatuneError) as caught:
        class_words(["0", "1"], described)
    message = str(caught.value)
    for problem in problems:
        assert problem in message
    assert "the form is --describe \"0=..., 1=...\"; classes: '0', '1'" in message


def test_equal_words_in_a_description_are_an_error() -> None:
    with pytest.raises(DeltatuneError, match=r"'0' and '1' have the same words \('spam'\)"):
        class_words(["0", "1"], "0=spam|junk, 1=good|spam")


def test_classes_that_say_nothing_need_a_description() -> None:
    assert needs_description(["0", "1"])
    assert needs_description(["a", "b"])
    assert not needs_description(["spam", "ham"])
    assert not needs_description(["no", "yes"]), "words all the same"


SIGNS = ("a,b", "nicht schön (schlecht)", "very good, yes=so")


@pytest.mark.parametrize(
    "given",
    [
        ["a,b=fair", "nicht schön (schlecht)=bad", "very good, yes=so=good|great"],
        ["very good, yes=so=good|great, a,b=fair, nicht schön (schlecht)=bad"],
    ],
)
def test_words_of_classes_with_commas_and_equals_signs(given: list[str]) -> None:
    expected = (("fair",), ("bad",), ("good", "great"))
    assert given_words(SIGNS, PromptOptions(words=split_assignments(given))) == expected
    assert given_words(SIGNS, PromptOptions(words=split_words(", ".join(given)))) == expected
    with pytest.raises(DeltatuneError, match=r"the class 'a,b' is left out"):
        given_words(SIGNS, PromptOptions(words=("nicht schön (schlecht)=bad", "very good, yes=so=good")))
