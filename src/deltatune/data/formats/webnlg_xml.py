"""WebNLG's XML: one row for each entry, with the columns that its data set has on the hub."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, read_text


def read_webnlg(path: Path) -> list[Row]:
    """`category`, `eid`, `size`, `modified_triple_sets` and `lex` of each entry.

    Raises DeltatuneError for other XML, and for a document type: its entities could expand without bound.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DeltatuneError(f"{path} declares a document type or entities; WebNLG's files have none. Remove them.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DeltatuneError(f"{path} is not XML: {error}.") from None
    entries = root.findall("./entries/entry")
    if root.tag != "benchmark" or not entries:
        raise DeltatuneError(
            f"{path} is no XML of WebNLG, which has <benchmark><entries><entry>; other XML is not read."
        )
    return [_row(entry) for entry in entries]


def _row(entry: ElementTree.Element) -> Row:
    triples = [triple.text or "" for triple in entry.findall("./modifiedtripleset/mtriple")]
    lex = entry.findall("lex")
    return {
        "category": entry.get("category", ""),
        "eid": entry.get("eid", ""),
        "size": len(triples),
        "modified_triple_sets": {"mtriple_set": [triples]},
        "lex": {
            "comment": [text.get("comment", "") for text in lex],
            "lid": [text.get("lid", "") for text in lex],
            "text": [(text.text or "").strip() for text in lex],
        },
    }


FORMATS = (FileFormat(read_webnlg, (".xml",)),)
