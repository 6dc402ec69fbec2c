"""Rows of images or sounds: encoded, a row is the name of its file; a batch reads its files when it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.data import Data
from deltatune.data.media.media_files import Inputs, MediaFile
from deltatune.data.media.sounds import sound_seconds
from deltatune.models.processors import LONGEST_SECONDS, Processor
from deltatune.tasks.collator import FILE, SECONDS
from deltatune.tasks.row_columns import column, raise_listed
from deltatune.tasks.task import Encoded, Row, TokenRow


def encode_files(
    rows: Sequence[Row], name: str, processor: Any, inputs: Inputs, seconds: float, must_fit: bool = False
) -> Encoded:
    """Rows with the files that their column `name` names, none of them decoded; sounds are cut at `seconds`.

    must_fit: whether longer sounds are an error. Raises DeltatuneError listing the rows whose file is missing or is of
    another kind, sounds that cannot be opened, and `seconds` beyond what the processor keeps.
    """
    check_inputs(inputs, processor)
    if processor.longest_seconds is not None and seconds > processor.longest_seconds:
        raise DeltatuneError(
            f"max_seconds={seconds:g} cannot be used: the model's processor keeps {processor.longest_seconds:g} seconds"
        )
    files, problems = [], []
    for i, value in enumerate(column(rows, name)):
        file = value if isinstance(value, MediaFile) or not isinstance(value, str) else MediaFile(value)
        if not isinstance(file, MediaFile) or not value.strip():
            problems.append(f"row {i}: {name} is {value!r}, not the name of an {inputs} file")
        elif file.kind != inputs:
            problems.append(f"row {i}: {name} is {value!r}, which has no suffix of an {inputs} file")
        elif not os.path.isfile(file):
            problems.append(f"row {i}: there is no file {str(file)!r}")
        else:
            files.append(file)
    raise_listed(problems)
    if inputs == "image":
        return Encoded([{FILE: file, "length": processor.states} for file in files])
    lengths = [sound_seconds(file) for file in files]
    longer = [i for i, length in enumerate(lengths) if length > seconds]
    if longer and must_fit:
        share = f"{len(longer)} of {len(files)} sounds are longer than max_seconds={seconds:g}"
        raise DeltatuneError(f"{share}, first row {longer[0]}; raise max_seconds or choose too_long='truncate'")
    encoded: list[TokenRow] = [
        {FILE: file, SECONDS: seconds, "length": max(1, round(min(length, seconds) * processor.rate))}
        for file, length in zip(files, lengths, strict=True)
    ]
    return Encoded(encoded, truncated=len(longer))


def check_inputs(inputs: Inputs, tokenizer: Any) -> None:
    """Raise DeltatuneError where a model reads something else than the task's rows hold."""
    reads = tokenizer.inputs if isinstance(tokenizer, Processor) else "text"
    if reads == inputs:
        return
    holds = {"text": "texts", "image": "image files", "audio": "sound files"}
    fitting = {
        "text": "a model that reads text (BERT, GPT-2, T5)",
        "image": "a vision model (ViT, DINOv2, CLIP)",
        "audio": "a speech model (Wav2Vec2, HuBERT, Whisper, AST)",
    }
    raise DeltatuneError(
        f"the model reads {holds[reads]}, and these rows hold {holds[inputs]}: choose {fitting[inputs]}, or name a "
        f"column of {holds[reads]} with --text"
    )


def check_data(data: Data, tokenizer: Any) -> None:
    """Raise DeltatuneError where a model reads something else than these data, or one of a mixture's parts, hold."""
    for part in getattr(data, "parts", {"": data}).values():
        check_inputs(part.inputs, tokenizer)


def what_reads(tokenizer: Any) -> str:
    """What an adapter was trained with that this model has not, and what would follow, for an error."""
    if isinstance(tokenizer, Processor):
        return f"processor than this model's: the same {tokenizer.inputs} file would become another input"
    return "tokenizer than this model's: the same text would become other tokens"


def longest_sound(rows: Sequence[Mapping[str, Any]], name: str, most: float | None) -> float:
    """Seconds of the longest sound of these rows, rounded up to a tenth, at most LONGEST_SECONDS and `most`."""
    limit = min(LONGEST_SECONDS, most or LONGEST_SECONDS)
    longest = 0.0
    for row in rows:
        longest = max(longest, sound_seconds(row[name]))
        if longest >= limit:
            return limit
    return min(limit, -(-longest * 10 // 1) / 10) or limit
