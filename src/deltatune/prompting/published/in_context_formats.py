"""Formats of in-context learning for left-to-right models: Zhao et al. 2021, https://arxiv.org/abs/2102.09690.

Some words are the first token of a longer one in GPT-3's vocabulary, as published: `Ab`, `Ath`, `Polit`.
"""

from __future__ import annotations

from deltatune.prompting.published.published_prompt import CALIBRATION, PublishedPrompt

IN_CONTEXT_FORMATS: tuple[PublishedPrompt, ...] = (
    PublishedPrompt(
        name="in-context-sst2",
        source=CALIBRATION,
        task="sentiment",
        datasets=("sst2",),
        texts=("text",),
        templates=("Review: {text}\nSentiment: {mask}",),
        words={"negative": ("Negative",), "positive": ("Positive",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="in-context-agnews",
        source=CALIBRATION,
        task="topic",
        datasets=("agnews",),
        texts=("text",),
        templates=("Article: {text}\nAnswer: {mask}",),
        words={
            "World": ("World",),
            "Sports": ("Sports",),
            "Business": ("Business",),
            "Sci/Tech": ("Technology", "Science"),
        },
        numbered=True,
        instruction="Classify the news articles into the categories of World, Sports, Business, and Technology.\n\n",
    ),
    PublishedPrompt(
        name="in-context-trec",
        source=CALIBRATION,
        task="question type",
        datasets=("trec", "trec6"),
        texts=("text",),
        templates=("Question: {text}\nAnswer Type: {mask}",),
        words={
            "NUM": ("Number",),
            "LOC": ("Location",),
            "HUM": ("Person",),
            "DESC": ("Description",),
            "ENTY": ("Entity",),
            "ABBR": ("Ab",),
        },
        instruction="Classify the questions based on whether their answer type is a Number, Location, Person, "
        "Description, Entity, or Abbreviation.\n\n",
    ),
    PublishedPrompt(
        name="in-context-rte",
        source=CALIBRATION,
        task="entailment",
        datasets=("rte",),
        texts=("premise", "hypothesis"),
        templates=(" {a}\nquestion: {b} True or False?\nanswer: {mask}",),
        words={"entailment": ("True",), "not_entailment": ("False",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="in-context-cb",
        source=CALIBRATION,
        task="entailment",
        datasets=("cb",),
        texts=("premise", "hypothesis"),
        templates=("{a}\nquestion: {b}. true, false, or neither?\nanswer: {mask}",),
        words={"entailment": ("true",), "contradiction": ("false",), "neutral": ("neither",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="in-context-dbpedia",
        source=CALIBRATION,
        task="topic",
        datasets=("dbpedia", "dbpedia14"),
        texts=("text",),
        templates=("Article: {text}\nAnswer: {mask}",),
        words={
            "Company": ("Company",),
            "EducationalInstitution": ("School",),
            "Artist": ("Artist",),
            "Athlete": ("Ath",),
            "OfficeHolder": ("Polit",),
            "MeanOfTransportation": ("Transportation",),
            "Building": ("Building",),
            "NaturalPlace": ("Nature",),
            "Village": ("Village",),
            "Animal": ("Animal",),
            "Plant": ("Plant",),
            "Album": ("Album",),
            "Film": ("Film",),
            "WrittenWork": ("Book",),
        },
        numbered=True,
        instruction="Classify the documents based on whether they are about a Company, School, Artist, Athlete, "
        "Politician, Transportation, Building, Nature, Village, Animal, Plant, Album, Film, or Book.\n\n",
    ),
)
"""The formats of the paper, and the text that comes before all demonstrations."""
