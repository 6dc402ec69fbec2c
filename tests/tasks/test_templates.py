"""Rows in templates are the tokens that the model would see in the filled text."""

import pytest

from deltatune import DeltatuneError, Template
from deltatune.tasks.prompts import template_tokens
from deltatune.tasks.prompts.template_tokens import spells_spaces
from support import vocabularies
from support.label_words import reader

KINDS = {"bert": "[MASK]", "roberta": "<mask>", "gpt2": "", "llama": "", "t5": "<extra_id_0>"}
TEXTS = ["The reader liked the film", "12 books!", "again ... and\n\nagain", "[x] {y} {mask}", ""]
TEMPLATES = [
    "{text} It was {mask}.",
    "{text}\n\n{mask}",
    "{text}\nAnswer:\n{mask}\n\nThe end",
    "({text}) ({mask}), again",
    'The "{mask}" of {text}',
    "  {text}:  {mask}  ",
]


def natural(tokenizer, template, row, word, lead=""):
    return tokenizer((lead + Template(template).fill(row, word)).strip(" "))["input_ids"]


def rendered(kind, tokenizer, template, texts, lead="", word="film"):
    mask = KINDS[kind]
    ids = [tokenizer.convert_tokens_to_ids(mask)] if mask else []
    rows = [{"text": text} for text in texts]
    made = Template(template).render_rows(
        rows, tokenizer, 10**6, None, ids, [lead] * len(rows), closed=bool(mask), word=word
    )
    return [(each.input_ids[: each.blank], each.input_ids[each.blank + len(ids) :]) for each in made]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_filled_text(kind, template):
    tokenizer = reader(kind)[1]
    for text, (before, after) in zip(TEXTS, rendered(kind, tokenizer, template, TEXTS), strict=True):
        expected = natural(tokenizer, template, {"text": text}, "film")
        if kind in ("roberta", "gpt2") and text == "":
            continue  # where a column is empty, spaces around it meet
        assert before == expected[: len(before)]
        assert after == expected[len(expected) - len(after) :]
        word = expected[len(before) : len(expected) - len(after)]
        assert tokenizer.decode(word).strip() == "film"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_demonstrations_and_a_row_are_one_text(kind):
    tokenizer = reader(kind)[1]
    lead = "".join(f"{text} It was old film\n\n" for text in ("Nobody forgot the plot.", "A writer.", "12")) * 2
    assert len(lead) > template_tokens.LONG
    template = "{text} It was {mask}"
    for (before, _), text in zip(rendered(kind, tokenizer, template, TEXTS[:4], lead), TEXTS[:4], strict=True):
        expected = natural(tokenizer, template, {"text": text}, "film", lead)
        assert before == expected[: len(before)]
        rest = tokenizer.decode(expected[len(before) :], skip_special_tokens=True)
        assert rest.strip() == "film"


def test_leads_shared_by_rows_are_tokenised_once_with_the_same_tokens(monkeypatch):
    lead = "Nobody forgot the plot. It was old film\n\n" * 5
    for kind in KINDS:
        tokenizer = reader(kind)[1]
        once = rendered(kind, tokenizer, "{text} It was {mask}.", TEXTS, lead)
        with monkeypatch.context() as context:
            context.setattr(template_tokens, "MANY", 10**9)
            assert rendered(kind, tokenizer, "{text} It was {mask}.", TEXTS, lead) == once


def test_a_mask_token_or_braces_in_a_text_are_no_second_blank():
    tokenizer = reader("bert")[1]
    template = Template("{text} it was {mask} .")
    row = {"text": "the [MASK] of {mask} and {text}"}
    made = template.render(row, tokenizer, 10**6)
    assert made.input_ids.count(tokenizer.mask_token_id) == 2  # the text's own is read as the tokenizer reads it
    behind = tokenizer(".", add_special_tokens=False)["input_ids"] + [tokenizer.sep_token_id]
    assert made.input_ids[made.blank :] == [tokenizer.mask_token_id, *behind]
    assert template.fill(row, "old") == "the [MASK] of {mask} and {text} it was old ."


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_spaces_are_spelled_by_byte_pairs_alone(kind):
    assert spells_spaces(vocabularies.tokenizer(kind)) == (kind in ("bytes", "behind"))


def test_rows_beyond_the_room_are_cut_at_their_longest_column():
    tokenizer = reader("bert")[1]
    template = Template("{a} so {b!} it was {mask}")
    rows = [{"a": "film " * n, "b": "plot plot plot"} for n in (1, 40, 400)]
    made = template.render_rows(rows, tokenizer, 10**6, 40, [tokenizer.mask_token_id])
    assert [len(each.input_ids) for each in made] == [len(made[0].input_ids), 40, 40]
    assert [each.cut for each in made] == [False, True, True]
    assert made[1].input_ids == made[2].input_ids
    (problem,) = template.render_rows(rows[:1], tokenizer, 10**6, 6, [tokenizer.mask_token_id])
    assert "tokens too long for a row whose columns are cut as far as they can be; raise max_length" in problem
    assert "columns with a !" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{text}", "one {mask}, for the answer; this one has 0"),
        ("{mask} {text} {mask}", "this one has 2"),
        ("It was {mask}", "names at least one column"),
        ("{text} {mask} {", "a single {"),
        ("{text:upper} {mask}", "there is no form 'upper'"),
        ("{text!x} {mask}", "cannot read {text!x}"),
        ("{:stem} {mask}", "cannot read {:stem}"),
        ("{999999} {text} {mask}", "virtual tokens are too many"),
        ("", "this one has 0"),
    ],
)
def test_what_is_no_template_is_an_error(text, message):
    with pytest.raises(DeltatuneError) as caught:
        Template(text)
    assert message in str(caught.value)
