"""Other wordings of a template: a masked model replaces its words one by one; two translators go there and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.models.loading import load_backbone
from deltatune.prompting.prompt_search.blank_readings import (
    blank_words,
    class_numbers,
    read_blanks,
    rows_in_turn,
    token_words,
)
from deltatune.prompting.prompt_search.template_generation import check_config
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.prompts.template_parts import TemplatePart
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Row
from deltatune.training.session import Session

ROWS = 16
"""Training rows in which a template's words are replaced."""
ANSWER = "answer_"
"""The column of a row's own label word, while another word is the blank."""
_WORD = re.compile(r"[^\W\d_]+")


def replaced_words(session: Session, task: LabelWords, rows: Sequence[Row], each: int = 3) -> list[str]:
    """Templates in which one word is another one: for every word the `each` likeliest by a masked model.

    The word is the blank, with the label word of the row in the template's own blank; the logits are the mean over up
    to 16 training rows. Only a masked model fills a blank anywhere: empty for others.
    """
    if special_blank(session) is None:
        return []
    template = task.templates[0]
    chosen = rows_in_turn(task, rows, ROWS)
    words = [task.words[number][0] for number in class_numbers(task, chosen).tolist()]
    answered = [{**row, ANSWER: word} for row, word in zip(chosen, words, strict=True)]
    found: list[str] = []
    vocabulary = session.host.sites.facts.vocabulary
    decoded = token_words(session.tokenizer, vocabulary)
    known_of: dict[tuple[bool, str], dict[int, str]] = {}
    for start, end, text in word_places(template):
        whole = (template.text[:start], template.text[end:])
        asked = "{mask}".join(part.replace("{mask}", f"{{{ANSWER}}}") for part in whole)
        spaced = Template(asked).spaced_blank
        kind = (spaced, "" if spaced else whole[0])
        if kind not in known_of:
            known_of[kind] = blank_words(session.tokenizer, Template(asked), vocabulary, decoded)
        known = known_of[kind]
        listed = list(known)
        if len(listed) < len(task.labels):
            continue
        own = replace(
            task,
            template=asked,
            text=(*task.text, ANSWER),
            words=tuple((known[id],) for id in listed[: len(task.labels)]),
        )
        scores = read_blanks(session, own, answered, listed).logits.log_softmax(-1).mean(0)
        likely = [known[listed[int(i)]] for i in scores.topk(min(each + 1, len(listed))).indices]
        others = [word for word in likely if word.lower() != text.lower()][:each]
        found += [f"{whole[0]}{_cased(word, text)}{whole[1]}" for word in others]
    return list(dict.fromkeys(found))


def special_blank(session: Session) -> int | None:
    """The mask token of a masked model; None for other models."""
    encoder = family(session.host.model.config) == "encoder"  # type: ignore[arg-type]
    return session.tokenizer.mask_token_id if encoder else None


def _cased(word: str, like: str) -> str:
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def word_places(template: Template) -> Iterator[tuple[int, int, str]]:
    """Where the words of a template stand in its text: start, end, word."""
    text = template.text
    fields = [match.span() for match in re.finditer(r"\{\{|\}\}|\{[^{}]*\}", text)]
    for match in _WORD.finditer(text):
        if not any(start <= match.start() < end for start, end in fields):
            yield match.start(), match.end(), match.group()


# ---- there and back


def round_trips(template: str, translators: tuple[str, str], beams: int = 4) -> list[str]:
    """The template translated there by one encoder-decoder and back by the other, `beams` wordings each way.

    Jiang et al. 2020, section 3.2, https://arxiv.org/abs/1911.12543. The template's fields are translated as signs X1,
    X2, ...; wordings that lose one are left out. Raises DeltatuneError for models that cannot translate.
    """
    parts = Template(template).parts
    plain, signs = with_signs(parts)
    there = translate([plain], translators[0], beams)
    back = translate(there, translators[1], beams)
    found = [without_signs(text, signs) for text in back]
    return [text for text in dict.fromkeys(found) if text and text != template]


def with_signs(parts: Sequence[TemplatePart]) -> tuple[str, dict[str, str]]:
    """A template's text with signs in place of its fields, and the field of each sign."""
    text, signs = "", dict[str, str]()
    for part in parts:
        if part.kind == "words":
            text += part.text
            continue
        sign = f"X{len(signs) + 1}"
        names = {"mask": "{mask}", "separator": "{sep}"}
        mark = "!" if part.whole else ""
        field = names.get(part.kind) or f"{{{part.text}{mark}{':' + part.form if part.form else ''}}}"
        if part.kind in ("virtual", "ids"):
            raise DeltatuneError(f"a template with virtual tokens or token ids, {field}, has no other wording")
        signs[sign] = field
        text += sign
    return text, signs


def without_signs(text: str, signs: dict[str, str]) -> str:
    """The template of a text with signs; "" where one is lost or doubled."""
    text = text.replace("{", "{{").replace("}", "}}").strip()
    for sign, field in signs.items():
        if len(re.findall(rf"\b{sign}\b", text)) != 1:
            return ""
        text = re.sub(rf"\b{sign}\b", lambda _, field=field: field, text)  # type: ignore[misc]
    return text


@torch.inference_mode()
def translate(texts: Sequence[str], folder: str, beams: int) -> list[str]:
    """The `beams` best outputs of an encoder-decoder for each text, each once."""
    check_config(folder, "translator")
    model, tokenizer = load_backbone(folder, answers="text")
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = model.generate(  # type: ignore[operator]
        **inputs, num_beams=beams, num_return_sequences=beams, do_sample=False, max_new_tokens=64
    )
    return list(dict.fromkeys(tokenizer.batch_decode(ids, skip_special_tokens=True)))
