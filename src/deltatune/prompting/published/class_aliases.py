"""Other names of published classes, as data sets of the hub and of papers have them."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "negative": ("neg",),
    "positive": ("pos",),
    "very negative": ("strongly negative",),
    "very positive": ("strongly positive",),
    "1 star": ("one star", "1 stars"),
    "2 stars": ("two stars", "2 star"),
    "3 stars": ("three stars", "3 star"),
    "4 stars": ("four stars", "4 star"),
    "5 stars": ("five stars", "5 star"),
    "subjective": ("subj",),
    "objective": ("obj",),
    "acceptable": ("grammatical",),
    "unacceptable": ("ungrammatical", "not acceptable"),
    "entailment": ("entailed", "entails"),
    "not_entailment": ("non entailment", "no entailment", "not entailed"),
    "contradiction": ("contradicts", "contradictory"),
    "neutral": ("neither",),
    "equivalent": ("paraphrase", "duplicate", "is duplicate"),
    "not_equivalent": ("non equivalent", "not paraphrase", "non paraphrase", "not duplicate", "no duplicate"),
    "ABBR": ("abbreviation", "expression"),
    "DESC": ("description",),
    "ENTY": ("entity",),
    "HUM": ("human", "person"),
    "LOC": ("location",),
    "NUM": ("number", "numeric"),
    "FAVOR": ("favour", "in favor"),
    "AGAINST": (),
    "True": ("t", "yes", "y"),
    "False": ("f", "no", "n"),
    "World": ("world news", "international"),
    "Sports": ("sport", "sports news"),
    "Business": ("business news",),
    "Sci/Tech": ("tech", "technology", "science", "science technology", "science and technology"),
    "Society & Culture": ("society", "society and culture"),
    "Science & Mathematics": ("science", "science and mathematics"),
    "Health": (),
    "Education & Reference": ("education", "education and reference"),
    "Computers & Internet": ("computer", "computers", "computers and internet"),
    "Business & Finance": ("business", "business and finance"),
    "Entertainment & Music": ("entertainment", "entertainment and music"),
    "Family & Relationships": ("relationship", "relationships", "family and relationships"),
    "Politics & Government": ("politics", "politics and government"),
    "EducationalInstitution": ("educational institution", "school"),
    "OfficeHolder": ("office holder", "politician"),
    "MeanOfTransportation": ("mean of transportation", "transportation"),
    "NaturalPlace": ("natural place", "nature"),
    "WrittenWork": ("written work", "book"),
}
"""Published class -> its other names; a name may belong to classes of several data sets."""

OPAQUE: Final = frozenset({"true", "false", "t", "f", "yes", "no", "y", "n"})
"""Class names that say nothing of what the classes are."""


def plain_name(label: str) -> str:
    """A class name without case and punctuation, with one space between words: `Sci/Tech` is `sci tech`."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", label).casefold().replace("_", " ")))


def is_opaque(label: str) -> bool:
    """Whether a class name says nothing of the class: a number, a single letter, yes or no."""
    name = plain_name(label)
    return name in OPAQUE or not any(character.isalpha() for character in name) or (len(name) == 1 and name.isascii())


def names_class(label: str, published: str) -> bool:
    """Whether a data set's class is the published one, by its name or another name of it."""
    return plain_name(label) in {plain_name(published), *map(plain_name, ALIASES.get(published, ()))}
