"""Templates that an encoder-decoder such as T5 writes: spans around the label words, for all rows at once.

Gao et al. 2021, section 5.2, https://arxiv.org/abs/2012.15723. The paper sums the log-probabilities of the rows; its
code takes the mean of their logits and then a log-softmax, which is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.models.hardware import best_device
from deltatune.models.loading import find_config, load_backbone
from deltatune.prompting.prompt_search.blank_readings import class_numbers, rows_in_turn
from deltatune.tasks.classification import joined_words
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Row
from deltatune.tasks.tokenization import padding_id

SENTINELS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
"""T5's tokens for the spans to write; the last one ends the second span."""
STEPS = 18
"""Tokens of both spans together, at most."""
MORE_TOKENS = 3
"""How many tokens more than there are beams are looked at in each step."""
ROWS = 64
"""Rows that templates are written for, at most."""
TOKENS_OF_TEXT = 128
SEQUENCES = 64
"""Sequences that the generator reads at once."""
Placement = Literal["after", "before"]
"""Where the blank is: behind the text, or before it."""


class WrittenTemplate(NamedTuple):
    """A template and the sum of the log-probabilities of its tokens."""

    template: str
    score: float


@dataclass(frozen=True)
class Generator:
    """An encoder-decoder that writes spans, and its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def sentinels(self) -> list[int]:
        """Ids of SENTINELS."""
        vocabulary = self.tokenizer.get_vocab()
        return [int(vocabulary[token]) for token in SENTINELS]

    @property
    def end(self) -> int:
        """Id of the end token."""
        return int(self.tokenizer.eos_token_id)


def load_generator(folder: str) -> Generator:
    """Load an encoder-decoder that writes spans. Raises DeltatuneError for a model without T5's sentinels."""
    check_config(folder, "generator")
    model, tokenizer = load_backbone(folder, answers="text")
    return check_generator(model.to(best_device()), tokenizer, folder)  # type: ignore[arg-type]


def check_config(folder: str, what: str) -> None:
    """Raise DeltatuneError unless the folder's model is an encoder-decoder; `what` it is for. Nothing is loaded."""
    _, config = find_config(folder)
    if family(config) != "encoder-decoder":
        raise DeltatuneError(
            f"{what} {folder}: a {config.model_type} is no encoder-decoder, which a T5 is, such as t5-base"
        )


def check_generator(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> Generator:
    """The encoder-decoder as a Generator. Raises DeltatuneError for a tokenizer without T5's sentinels."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SENTINELS if token not in vocabulary]
    if missing or tokenizer.eos_token_id is None:
        what = f"no sentinel {', '.join(missing)}" if missing else "no end token"
        raise DeltatuneError(
            f"generator {name}: its tokenizer has {what}, so it cannot say where a span is; take a T5 that was "
            "pretrained on spans"
        )
    return Generator(model, tokenizer)


def write_templates(
    generator: Generator, task: LabelWords, rows: Sequence[Row], beams: int = 20, left_to_right: bool = False
) -> list[WrittenTemplate]:
    """Templates for the task's texts and words, the best first; `beams` for each placement of the blank.

    The blank of one text comes behind it or before it, that of two between them; of more, and for left-to-right models,
    behind them all. Rows: training rows; the first word of their class stands between the spans.
    """
    columns = task.text
    placements: tuple[Placement, ...] = ("after", "before") if len(columns) == 1 and not left_to_right else ("after",)
    chosen = rows_in_turn(task, rows, ROWS)
    written: dict[str, float] = {}
    for placement in placements:
        inputs = span_inputs(generator, task, chosen, placement, between=len(columns) == 2 and not left_to_right)
        for spans, score in write_spans(generator, inputs, beams):
            template = template_of(generator.tokenizer, columns, spans, placement, left_to_right)
            written[template] = max(score, written.get(template, score))
    return [WrittenTemplate(template, written[template]) for template in sorted(written, key=lambda t: -written[t])]


def span_inputs(
    generator: Generator, task: LabelWords, rows: Sequence[Row], placement: Placement, between: bool
) -> list[list[int]]:
    """What the encoder reads of each row: its texts, and the word of its class between two sentinels."""
    tokenizer, (first, second, _) = generator.tokenizer, generator.sentinels
    inputs = []
    for row, number in zip(rows, class_numbers(task, rows).tolist(), strict=True):
        texts = [str(joined_words(row[name])).strip() for name in task.text]
        texts[0] = texts[0][:1].upper() + texts[0][1:]
        if between:
            texts = [texts[0].rstrip(".!?,;: "), texts[1][:1].lower() + texts[1][1:]]
        ids = [ids_of(tokenizer, text)[:TOKENS_OF_TEXT] for text in texts]
        blank = [first, *ids_of(tokenizer, task.words[number][0]), second]
        if placement == "before":
            parts = [ids_of(tokenizer, "."), blank, *ids]
        else:
            parts = [ids[0], blank, *ids[1:]] if between else [*ids, blank]
        inputs.append([token for part in parts for token in part] + [generator.end])
    return inputs


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


# ---- beam search that all rows share


class Beam(NamedTuple):
    """The spans written so far."""

    ids: tuple[int, ...]
    score: float
    closed: int
    """Spans that are closed, the text before the first sentinel counted as one."""


@torch.inference_mode()
def write_spans(
    generator: Generator, inputs: Sequence[list[int]], beams: int, steps: int = STEPS
) -> list[tuple[tuple[tuple[int, ...], tuple[int, ...]], float]]:
    """The likeliest two spans for all inputs together, with their scores, the best first; at most `beams`.

    The score is the sum over the tokens of the log-softmax of the logits' mean over the inputs. A span ends with the
    next sentinel or with the end token. Spans that do not end within `steps` tokens are left out.
    """
    first, *nexts = generator.sentinels
    forbidden = forbidden_tokens(generator)
    encoder = EncodedInputs(generator, inputs)
    start = encoder.log_probabilities([()])[0]
    alive = [Beam((first,), float(start[first]), 0)]
    for _ in range(steps - 1):
        open_beams = [beam for beam in alive if beam.closed < len(nexts)]
        if not open_beams:
            break
        following = [beam for beam in alive if beam.closed == len(nexts)]
        for beam, scores in zip(open_beams, encoder.log_probabilities([each.ids for each in open_beams]), strict=True):
            ends = {nexts[beam.closed], generator.end}
            scores = scores.masked_fill(forbidden, -torch.inf)
            others = [token for token in nexts if token not in ends]
            scores[others] = -torch.inf
            if beam.ids[-1] in encoder.dots:
                scores[list(encoder.dots)] = -torch.inf
            best = scores.topk(min(beams + MORE_TOKENS, int(scores.isfinite().sum())))
            following += [
                Beam((*beam.ids, token), beam.score + value, beam.closed + (token in ends))
                for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        alive = sorted(following, key=lambda beam: -beam.score)[:beams]
    written: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for beam in alive:
        if beam.closed == len(nexts):
            written.setdefault(_spans(beam.ids[1:], nexts, generator.end), beam.score)
    return list(written.items())


def _spans(ids: Sequence[int], nexts: Sequence[int], end: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    stops = [i for i, token in enumerate(ids) if token in (*nexts, end)]
    return tuple(ids[: stops[0]]), tuple(ids[stops[0] + 1 : stops[1]])


def forbidden_tokens(generator: Generator) -> Tensor:
    """Tokens (V,) that no span has: special ones but those that end it, blanks, and points in a row."""
    tokenizer, size = generator.tokenizer, int(generator.model.config.vocab_size)
    allowed = {*generator.sentinels[1:], generator.end}
    special = {*tokenizer.all_special_ids, *range(len(tokenizer), size)}
    special |= {token for text, token in tokenizer.get_vocab().items() if text.startswith("<extra_id_")}
    texts = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    plain = [text.replace("▁", " ").strip() for text in texts]
    empty = {token for token, text in enumerate(plain) if not text or (len(text) > 1 and set(text) <= {"."})}
    forbidden = torch.zeros(size, dtype=torch.bool, device=generator.model.device)
    forbidden[torch.tensor(sorted((special | empty) - allowed), dtype=torch.long)] = True
    return forbidden


class EncodedInputs:
    """Inputs that the encoder has read, for a decoder that writes the same spans for all of them."""

    def __init__(self, generator: Generator, inputs: Sequence[list[int]]) -> None:
        self.model, self.start = generator.model, int(generator.model.config.decoder_start_token_id)
        device = self.model.device
        rows = [torch.tensor(ids) for ids in inputs]
        ids = pad_sequence(rows, batch_first=True, padding_value=padding_id(generator.tokenizer)).to(device)
        self.mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        encoder = self.model.get_encoder()
        self.states = torch.cat([
            encoder(input_ids=ids[i : i + SEQUENCES], attention_mask=self.mask[i : i + SEQUENCES]).last_hidden_state
            for i in range(0, len(ids), SEQUENCES)
        ])  # fmt: skip
        texts = generator.tokenizer.convert_ids_to_tokens(list(range(len(generator.tokenizer))))
        self.dots = {token for token, text in enumerate(texts) if text.replace("▁", "").strip() == "."}

    def log_probabilities(self, written: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-softmax (K, V) of the logits' mean over the inputs, of the next token behind each of K texts."""
        rows, results = len(self.states), []
        for ids in written:
            decoder = torch.tensor([self.start, *ids], device=self.states.device)
            logits = [
                self.model(
                    encoder_outputs=(self.states[i : i + SEQUENCES],),
                    attention_mask=self.mask[i : i + SEQUENCES],
                    decoder_input_ids=decoder.expand(min(SEQUENCES, rows - i), -1),
                    use_cache=False,
                ).logits[:, -1]
                for i in range(0, rows, SEQUENCES)
            ]
            results.append(torch.cat(logits).float().mean(0).log_softmax(-1))
        return torch.stack(results)


# ---- spans to templates


def template_of(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    spans: tuple[Sequence[int], Sequence[int]],
    placement: Placement,
    left_to_right: bool = False,
) -> str:
    """The template of two spans around the blank: "{text} It was {mask}." of " It was" and "."."""
    before, after = (span_text(tokenizer, span) for span in spans)
    fields = [f"{{{name}}}" for name in columns]
    if placement == "before":
        return f"{before.strip()} {{mask}}{after.rstrip()} {' '.join(fields)}".strip()
    if len(columns) == 2 and not left_to_right:
        return f"{{{columns[0]}:stem}}{before.rstrip()} {{mask}}{after.rstrip()} {{{columns[1]}:lower}}"
    ending = "" if left_to_right and not any(map(str.isalnum, after)) else after.rstrip()
    return f"{' '.join(fields)}{before.rstrip()} {{mask}}{ending}"


def span_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a span, with the space that it begins with; braces are doubled, as templates have them."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    if "▁" in "".join(pieces) or not pieces:
        text = "".join(pieces).replace("▁", " ")
    else:
        text = str(tokenizer.decode(list(ids)))
        text = f" {text}" if text[:1].isalnum() and not pieces[0].startswith("##") else text
    return text.replace("{", "{{").replace("}", "}}")
