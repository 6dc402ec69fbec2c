"""Names that columns of data for tagging, questions on a context, generation and language modelling have."""

from __future__ import annotations

TOKENS = ("tokens", "words", "token", "word")
"""Names of the column of tokens, the likeliest first."""

TAGS = ("tags", "ner_tags", "bio_tags", "iob_tags", "pos_tags", "chunk_tags", "ner", "pos", "upos", "xpos", "labels")
"""Names of the column of tags, the likeliest first."""

QUESTIONS = ("question", "query")
CONTEXTS = ("context", "passage", "paragraph")
ANSWERS = ("answers", "answer")
"""Names of the columns of questions on a context."""

CHATS = ("messages", "conversations", "conversation")
"""Names of the column of a chat."""

REFERENCES = ("references", "human_references", "targets", "outputs")
"""Names of columns with several outputs a row."""

INPUTS: tuple[str, ...] = (
    "input",
    "source",
    "src",
    "prompt",
    "question",
    "article",
    "document",
    "dialogue",
    "meaning_representation",
    "mr",
    "table",
    "triples",
    "instruction",
    "text",
)
"""Names of the input of generation."""

OUTPUTS: tuple[str, ...] = (
    "output",
    "target",
    "tgt",
    "completion",
    "response",
    "summary",
    "highlights",
    "answer",
    "human_reference",
    "ref",
    "reference",
    "sql",
    "query",
    "translation",
    "paraphrase",
    "headline",
)
"""Names of the output of generation."""

WRITING: tuple[tuple[tuple[str, ...], str], ...] = (
    *(((("instruction", "context"), output)) for output in ("response", "output", "completion")),
    *(((("instruction", "input"), output)) for output in ("output", "response", "completion")),
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
    (("mr",), "human_reference"),
    (("mr",), "ref"),
    (("table",), "text"),
    (("triples",), "text"),
    (("question", "context"), "answer"),
    (("question",), "sql"),
    (("question",), "query"),
    (("question",), "answer"),
    (("question",), "response"),
)
"""Input columns and output column that say by their names that a text is to be written, the surest first."""

TEXTS = ("text", "content", "document", "body", "page_content", "raw_content")
"""Names of the column of documents."""

BESIDE = {"title", "url", "name", "date", "timestamp", "meta", "metadata", "author", "language", "lang", "license"}
BESIDE |= {"source", "domain", "file", "filename", "path", "section", "heading", "length", "dump", "language_score"}
"""Names of columns that tell of a document, and are no label of it."""
