"""Nested columns of published data sets -> plain columns: triples, texts of SQL, clozes, questions of a passage.

A function for each data set: a row in, one or more rows out, with the columns that it came with and the plain ones.
Where a row has another form it raises KeyError, TypeError or ValueError.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.data.columns.column_names import CHOSEN, PROMPT, REJECTED, by_normalised
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import first_few
from deltatune.data.published.wikisql import write_query

TRIPLE_PARTS = 3
MASK = "{mask}"
"""The blank of a cloze, whatever the mask token of a model is."""


def webnlg(row: Row) -> list[Row]:
    """`triples` from `modified_triple_sets`, `references` from the texts of `lex` whose comment is `good` or blank."""
    sets = row["modified_triple_sets"]
    sets = sets["mtriple_set"] if isinstance(sets, Mapping) else sets
    first = sets[0] if sets and not isinstance(sets[0], str) else sets
    triples = [[part.strip() for part in triple.split("|")] for triple in first]
    if not triples or any(len(triple) != TRIPLE_PARTS for triple in triples):
        raise ValueError("a triple is not subject | relation | object")
    texts = [lex["text"] for lex in objects_of(row["lex"]) if str(lex.get("comment") or "good").lower() == "good"]
    return [{**row, "triples": triples, "references": texts}]


def dart(row: Row) -> list[Row]:
    """`triples` from `tripleset`, `references` from the texts of `annotations`."""
    triples = [list(triple) for triple in row["tripleset"]]
    if not triples or any(len(triple) != TRIPLE_PARTS for triple in triples):
        raise ValueError("a triple has not three parts")
    return [{**row, "triples": triples, "references": [note["text"] for note in objects_of(row["annotations"])]}]


def wikisql(row: Row) -> list[Row]:
    """`columns`, the names of the table's columns on one line, and `query`, the text of `sql`."""
    names = [" ".join(str(name).split()) for name in row["table"]["header"]]
    query = {} if row.get("sql") is None else {"query": write_query(row["sql"], names)}
    return [{**row, "columns": " | ".join(names), **query}]


def gsm8k(row: Row) -> list[Row]:
    """`answer` from `rationale` and `final_answer`, as GSM8K's own files write it: the answer behind `####`."""
    rationale, final = row["rationale"], row["final_answer"]
    if final is None or isinstance(final, bool) or not str(final).strip():
        raise ValueError("final_answer is empty")
    if not isinstance(final, (str, int, float)) or not isinstance(rationale, (str, type(None))):
        raise TypeError("rationale and final_answer are texts or numbers")
    return [{**row, "answer": f"{(rationale or '').strip()}\n#### {final}".strip()}]


def aqua(row: Row) -> list[Row]:
    """`choices` on one line from `options`, such as "A)21"; `answer` from `rationale` and `correct`, the letter."""
    options = [str(option).strip() for option in row["options"]]
    if not options or any(not re.match(r"\(?[A-Z]\)", option) for option in options):
        raise ValueError("an option does not begin with its letter, such as A)")
    shown = " ".join(f"({option.lstrip('(')[0]}) {option.partition(')')[2].strip()}" for option in options)
    given = {} if row.get("correct") is None else gsm8k({**row, "final_answer": row["correct"]})[0]
    answer = {"answer": given["answer"]} if given else {}
    return [{**row, "choices": f"Answer Choices: {shown}", **answer}]


def with_tables(rows: Sequence[Row], tables: Sequence[Row], where: str) -> list[Row]:
    """The rows of WikiSQL's own files with their `table`, by its id. Raises DeltatuneError for ids of no table."""
    by_id = {str(table.get("id")): table for table in tables}
    missing = list(dict.fromkeys(str(row.get("table_id")) for row in rows if str(row.get("table_id")) not in by_id))
    if missing:
        raise DeltatuneError(
            f"{where}: {len(missing)} values of 'table_id' are the id of no table in its file of tables: "
            f"{first_few(missing)}."
        )
    return [{**row, "table": by_id[str(row["table_id"])]} for row in rows]


def lama(row: Row) -> list[Row]:
    """`text`: the template with its subject, or the first masked sentence, with `{mask}` in place of the object."""
    template, sentences = row.get("template"), row.get("masked_sentences") or row.get("masked_sentence")
    if isinstance(template, str) and "[Y]" in template:
        cloze = template.replace("[X]", row["sub_label"]).replace("[Y]", MASK)
    else:
        sentences = sentences or [evidence["masked_sentence"] for evidence in row["evidences"]]
        cloze = sentences if isinstance(sentences, str) else sentences[0]
        if "[MASK]" not in cloze:
            raise ValueError("a masked sentence has no [MASK]")
        cloze = cloze.replace("[MASK]", MASK)
    return [{**row, "text": cloze}]


def multirc(row: Row) -> list[Row]:
    """A row for each answer of each question of a passage, with `idx` as on the hub."""
    others = {name: value for name, value in row.items() if name not in ("passage", "idx")}
    return [
        {
            **others,
            "paragraph": row["passage"]["text"],
            "question": question["question"],
            "answer": answer["text"],
            "idx": {"paragraph": row.get("idx"), "question": question.get("idx"), "answer": answer.get("idx")},
            **({"label": answer["label"]} if "label" in answer else {}),
        }
        for question in row["passage"]["questions"]
        for answer in question["answers"]
    ]


def record(row: Row) -> list[Row]:
    """A row for each query of a passage."""
    text = row["passage"]["text"]
    entities = [text[entity["start"] : entity["end"] + 1] for entity in row["passage"].get("entities", ())]
    others = {name: value for name, value in row.items() if name not in ("passage", "qas", "idx")}
    return [
        {
            **others,
            "passage": text,
            "query": query["query"],
            "entities": entities,
            "idx": {"passage": row.get("idx"), "query": query.get("idx")},
            **({"answers": [_located(answer) for answer in query["answers"]]} if "answers" in query else {}),
        }
        for query in row["qas"]
    ]


def wsc(row: Row) -> list[Row]:
    """The columns of `target` beside the others."""
    return [{**{name: value for name, value in row.items() if name != "target"}, **row["target"]}]


def _located(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": answer["text"], "start": answer["start"]}


def objects_of(value: Any) -> Sequence[Mapping[str, Any]]:
    """A list of objects, also where it is an object of lists, as `datasets` has it."""
    if isinstance(value, Mapping):
        columns = {name: items for name, items in value.items() if isinstance(items, (list, tuple))}
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return list(value)


TURN = "\n\nAssistant:"
"""What comes before an answer in the dialogues of HH-RLHF."""


def preferences(row: Row) -> list[Row]:
    """`prompt` from the text that `chosen` and `rejected` both begin with, and the answers without it.

    It ends behind the last dialogue turn that both share, else before a blank, so that no word is cut. Chats keep what
    they share: it is read there.
    """
    names = by_normalised(list(row))
    chosen, rejected = row[names[CHOSEN]], row[names[REJECTED]]
    if not (isinstance(chosen, str) and isinstance(rejected, str)) or chosen.lstrip().startswith("[{"):
        return [{**row, PROMPT: ""}]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(letter for letter, _ in same)
    end = shared.rfind(TURN) + len(TURN) if TURN in shared else len(shared)
    while TURN not in shared and end and not shared[end - 1].isspace():
        end -= 1
    while end and shared[end - 1] == " ":  # a blank belongs to the word behind it
        end -= 1
    return [{**row, PROMPT: chosen[:end], names[CHOSEN]: chosen[end:], names[REJECTED]: rejected[end:]}]
