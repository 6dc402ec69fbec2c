"""Patterns and verbalizers of PET: Schick & Schütze 2021, https://arxiv.org/abs/2001.07676 and
https://arxiv.org/abs/2009.07118 (SuperGLUE).

Each text may be cut; what PET never cuts has an exclamation mark. `{sep}` is the paper's mark between two segments.
Not here: COPA, WSC and ReCoRD, where the answers are choices of the row and not words of a class.
"""

from __future__ import annotations

from typing import Final

from deltatune.prompting.published.published_prompt import PET, PET_SUPERGLUE, PublishedPrompt

_NEWS_OF_TWO: Final = (
    *("{mask}: {a} {b}", "{mask} News: {a} {b}", "{a} ({mask}) {b}", "{a} {b} ({mask})"),
    *("[ Category: {mask} ] {a} {b}", "{mask} - {a} {b}"),
)
_NEWS: Final = (
    *("{mask}: {text}", "{mask} News: {text}", "{text} ({mask})", "[ Category: {mask} ] {text}", "{mask} - {text}"),
)
_AGNEWS: Final = {"World": ("World",), "Sports": ("Sports",), "Business": ("Business",), "Sci/Tech": ("Tech",)}
_YAHOO: Final = {
    "Society & Culture": ("Society",),
    "Science & Mathematics": ("Science",),
    "Health": ("Health",),
    "Education & Reference": ("Education",),
    "Computers & Internet": ("Computer",),
    "Sports": ("Sports",),
    "Business & Finance": ("Business",),
    "Entertainment & Music": ("Entertainment",),
    "Family & Relationships": ("Relationship",),
    "Politics & Government": ("Politics",),
}
_YELP: Final = (
    *("It was {mask}. {text}", "{text}. All in all, it was {mask}."),
    *("Just {mask}! {sep} {text}", "{text} {sep} In summary, the restaurant is {mask}."),
)
_NLI: Final = ("premise", "hypothesis")
_MNLI: Final = ('"{a:stem}"? {sep} {mask}, "{b}"', "{a:stem}? {sep} {mask}, {b}")
_RTE: Final = (
    *('"{b:stem}"? {sep} {mask}, "{a}"', "{b:stem}? {sep} {mask}, {a}"),
    *('"{b:stem}"? {sep} {mask}. "{a}"', "{b:stem}? {sep} {mask}. {a}"),
)
_BOOLQ: Final = (
    "{a}. Question: {b}? Answer: {mask}.",
    "{a}. Based on the previous passage, {b}? {mask}.",
    "Based on the following passage, {b}? {mask}. {a}",
)
_MULTIRC: Final = (
    "{a}. Question: {b!}? Is it {c!}? {mask}.",
    '{a}. Question: {b!}? Is the correct answer "{c!}"? {mask}.',
    '{a}. Based on the previous passage, {b!}? Is "{c!}" a correct answer? {mask}.',
)
_WIC: Final = (
    '"{a}" / "{b}" Similar sense of "{c!}"? {mask}.',
    "{a} {b} Does {c!} have the same meaning in both sentences? {mask}",
)
_STANCE: Final = ('"{a}" {sep} {mask}. "{b}"', "{a} {sep} {mask}. {b}")
_NLI_NUMBERED: Final = {"entailment": ("Right",), "neutral": ("Maybe",), "contradiction": ("Wrong",)}
_NO_YES: Final = {"False": ("No",), "True": ("Yes",)}


def _stance(language: str, against: str, favor: str) -> PublishedPrompt:
    words = {"AGAINST": (against,), "FAVOR": (favor,)}
    datasets = ("xstance", f"xstance{language}")
    return PublishedPrompt(
        name=f"pet-xstance-{language}",
        source=PET,
        task="stance",
        datasets=datasets,
        texts=("question", "comment"),
        templates=_STANCE,
        words=words,
    )


PET_PATTERNS: tuple[PublishedPrompt, ...] = (
    PublishedPrompt(
        name="pet-agnews",
        source=PET,
        task="topic",
        datasets=("agnews",),
        texts=("title", "description"),
        templates=_NEWS_OF_TWO,
        words=_AGNEWS,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-agnews-one-text",
        source=PET,
        task="topic",
        datasets=("agnews",),
        texts=("text",),
        templates=_NEWS,
        words=_AGNEWS,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-yahoo",
        source=PET,
        task="topic",
        datasets=("yahoo", "yahooanswers"),
        texts=("question", "answer"),
        templates=tuple(template.replace("News:", "Question:") for template in _NEWS_OF_TWO),
        words=_YAHOO,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-yahoo-one-text",
        source=PET,
        task="topic",
        datasets=("yahoo", "yahooanswers"),
        texts=("text",),
        templates=tuple(template.replace("News:", "Question:") for template in _NEWS),
        words=_YAHOO,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-yelp-polarity",
        source=PET,
        task="sentiment",
        datasets=("yelppolarity", "yelp"),
        texts=("text",),
        templates=_YELP,
        words={"negative": ("bad",), "positive": ("good",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-yelp-full",
        source=PET,
        task="sentiment",
        datasets=("yelpfull", "yelpreviewfull", "yelp5", "yelp"),
        texts=("text",),
        templates=_YELP,
        words={
            "1 star": ("terrible",),
            "2 stars": ("bad",),
            "3 stars": ("okay",),
            "4 stars": ("good",),
            "5 stars": ("great",),
        },
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-mnli-wrong-right",
        source=PET,
        task="entailment",
        datasets=("mnli",),
        texts=_NLI,
        templates=_MNLI,
        words=_NLI_NUMBERED,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-mnli-no-yes",
        source=PET,
        task="entailment",
        datasets=("mnli",),
        texts=_NLI,
        templates=_MNLI,
        words={"entailment": ("Yes",), "neutral": ("Maybe",), "contradiction": ("No",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-rte-no-yes",
        source=PET_SUPERGLUE,
        task="entailment",
        datasets=("rte", "axb", "axg"),
        texts=_NLI,
        templates=_RTE,
        words={"entailment": ("Yes",), "not_entailment": ("No",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-rte-true-false",
        source=PET_SUPERGLUE,
        task="entailment",
        datasets=("rte", "axb", "axg"),
        texts=_NLI,
        templates=("{a} question: {b} True or False? answer: {mask}",),
        words={"entailment": ("true",), "not_entailment": ("false",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-cb-no-yes",
        source=PET_SUPERGLUE,
        task="entailment",
        datasets=("cb",),
        texts=_NLI,
        templates=_RTE,
        words={"entailment": ("Yes",), "contradiction": ("No",), "neutral": ("Maybe",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-cb-true-false",
        source=PET_SUPERGLUE,
        task="entailment",
        datasets=("cb",),
        texts=_NLI,
        templates=("{a} question: {b} true, false or neither? answer: {mask}",),
        words={"entailment": ("true",), "contradiction": ("false",), "neutral": ("neither",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-boolq-no-yes",
        source=PET_SUPERGLUE,
        task="reading",
        datasets=("boolq",),
        texts=("passage", "question"),
        templates=_BOOLQ,
        words=_NO_YES,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-boolq-true-false",
        source=PET_SUPERGLUE,
        task="reading",
        datasets=("boolq",),
        texts=("passage", "question"),
        templates=_BOOLQ,
        words={"False": ("false",), "True": ("true",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-multirc-no-yes",
        source=PET_SUPERGLUE,
        task="reading",
        datasets=("multirc",),
        texts=("passage", "question", "answer"),
        templates=_MULTIRC,
        words=_NO_YES,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-multirc-true-false",
        source=PET_SUPERGLUE,
        task="reading",
        datasets=("multirc",),
        texts=("passage", "question", "answer"),
        templates=("{a} {b!} - [ {mask} ] {c!}",),
        words={"False": ("False",), "True": ("True",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-wic-no-yes",
        source=PET_SUPERGLUE,
        task="word sense",
        datasets=("wic",),
        texts=("sentence1", "sentence2", "word"),
        templates=_WIC,
        words=_NO_YES,
        numbered=True,
    ),
    PublishedPrompt(
        name="pet-wic-dictionary",
        source=PET_SUPERGLUE,
        task="word sense",
        datasets=("wic",),
        texts=("sentence1", "sentence2", "word"),
        templates=('{c!} . Sense (1) (a) "{a}" ({mask}) "{b}"',),
        words={"False": ("2",), "True": ("b",)},
        numbered=True,
    ),
    _stance("de", "Nein", "Ja"),
    _stance("en", "No", "Yes"),
    _stance("fr", "Non", "Oui"),
)
"""The patterns of PET with the verbalizers that belong to them."""
