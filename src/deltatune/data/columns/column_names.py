"""The names that columns have in published data sets, and the names that they get here."""

from __future__ import annotations

MESSAGES = "messages"
"""The column that chats are in after reading."""
REFERENCES = "references"
"""The column with every output that counts as correct, after reading."""
OUTPUT = "output"
"""The column with the first reference, where a file has only references."""

# --- classification and regression ---

TEXT_PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("sentence_1", "sentence_2"),
    ("text", "text_pair"),
    ("#1 string", "#2 string"),
    ("question", "answer"),
)
"""Names of two text columns, the likeliest first."""

SINGLE_TEXTS: tuple[str, ...] = ("text", "sentence", "content", "review", "review_text", "document", "body", "comment")
SINGLE_TEXTS += ("message", "tweet", "utterance", "question", "query", "passage", "abstract", "description", "title")
SINGLE_TEXTS += ("input",)
"""Names of a single text column, the likeliest first."""

LABELS: tuple[str, ...] = ("label", "labels", "class", "category", "target", "score", "similarity", "gold_label")
LABELS += ("label_text", "intent", "sentiment", "emotion", "topic", "polarity", "rating", "stars")
LABELS += ("is_duplicate", "quality", "coarse", "coarse_label", "label-coarse", "fine", "fine_label", "label-fine")
"""Names of the label column, the likeliest first."""

GOLD_LABEL, NO_GOLD = "gold_label", "-"
"""A label column, and its value where the annotators did not agree, as in SNLI."""

SCORES = {"score", "similarity"}
"""Names of label columns that hold a continuous value even where all values are whole."""

CHOICES = ("choices", "options", "endings", "candidates", "answer_choices", "mc1_targets")
"""Names of columns with the choices of a question."""

# --- tagging and extractive QA ---

TOKENS = ("tokens", "words", "token", "word")
"""Names of the column of tokens, the likeliest first."""

TAGS = ("tags", "ner_tags", "bio_tags", "iob_tags", "pos_tags", "chunk_tags", "ner", "pos", "upos", "xpos", "labels")
"""Names of the column of tags, the likeliest first."""

QUESTIONS = ("question", "query")
CONTEXTS = ("context", "passage", "paragraph")
ANSWERS = ("answers", "answer")
"""Names of the columns of extractive QA."""

# --- generation ---

CHATS = (MESSAGES, "conversations", "conversation")
"""Names of the column of a chat."""

REFERENCE_LISTS = (REFERENCES, "human_references", "targets", "outputs")
"""Names of columns with several outputs a row."""

INPUTS: tuple[str, ...] = ("input", "source", "src", "prompt", "question", "article", "document", "dialogue")
INPUTS += ("meaning_representation", "mr", "table", "triples", "tripleset", "instruction", "text")
"""Names of the input column."""

OUTPUTS: tuple[str, ...] = (OUTPUT, "target", "tgt", "completion", "response", "summary", "highlights", "answer")
OUTPUTS += ("human_reference", "ref", "reference", "sql", "query", "translation", "paraphrase", "headline")
"""Names of the output column."""

INPUT_OUTPUT: tuple[tuple[tuple[str, ...], str], ...] = (
    *((("instruction", "context"), output) for output in ("response", "output", "completion")),
    *((("instruction", "input"), output) for output in ("output", "response", "completion")),
    *((("instruction",), output) for output in ("output", "response", "completion")),
    *((("prompt",), output) for output in ("completion", "response", "output")),
    *((("input",), output) for output in ("output", "target", "response")),
    (("source",), "target"),
    (("src",), "tgt"),
    (("dialogue",), "summary"),
    (("article",), "highlights"),
    (("article",), "summary"),
    (("document",), "summary"),
    (("text",), "summary"),
    (("text",), "headline"),
    (("meaning_representation",), "human_reference"),
    (("meaning_representation",), "target"),
    (("mr",), "human_reference"),
    (("mr",), "ref"),
    (("tripleset",), "target"),
    (("document",), "target"),
    (("article",), "target"),
    (("dialogue",), "target"),
    (("table",), "text"),
    (("triples",), "text"),
    (("question", "context"), "answer"),
    (("question",), "sql"),
    (("question",), "query"),
    (("question",), "answer"),
    (("question",), "response"),
)
"""Input columns and the output column that together mean generation, the likeliest first."""

# --- preferences ---

PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"
"""Columns of preferences, the last two after reading."""

PROMPTS = (PROMPT, "question", "instruction", "input", "query", "messages")
"""Names of the column of prompts, the likeliest first."""

PREFERENCES = (
    (CHOSEN, REJECTED),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("answer_chosen", "answer_rejected"),
)
"""Names of the columns of the chosen and the rejected answer, the likeliest first."""

# --- language modelling ---

DOCUMENTS = ("text", "content", "document", "body", "page_content", "raw_content")
"""Names of the column of documents."""

METADATA = {"title", "url", "name", "date", "timestamp", "meta", "metadata", "author", "language", "lang", "license"}
METADATA |= {"source", "domain", "file", "filename", "path", "section", "heading", "length", "dump", "language_score"}
"""Names of columns that describe a document and are not a label of it."""

# --- every task ---

IDS = {"", "id", "idx", "index", "guid", "uid", "uuid", "pairid", "promptid", "row", "unnamed: 0", "__index_level_0__"}
"""Names of columns that only number the rows."""


def normalised(name: str) -> str:
    """A name in the form of the tables of this file: lower case, without blanks around it."""
    return name.strip().lower()


def by_normalised(names: list[str]) -> dict[str, str]:
    """Normalised name -> name in the file; the first of those that differ in case only."""
    return {normalised(name): name for name in reversed(names)}


def is_id(name: str) -> bool:
    """Whether a column, by its name, only numbers the rows or identifies what they belong to."""
    return normalised(name) in IDS or normalised(name).endswith("_id")
