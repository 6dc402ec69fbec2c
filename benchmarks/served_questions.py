"""Questions to a server of adapters, with the answers that each adapter gives alone, without any server.

The base is a small random Llama or GPT-2 with a vocabulary of words; adapters are of many methods with random values:
generators, classifiers and taggers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from deltatune import Host, parse
from deltatune.serving.engine.requests import Sampling
from deltatune.serving.engine.sampling import RowSampler
from deltatune.tasks import Classify, Generate, Tag
from deltatune.tasks.row_inputs import row_inputs
from deltatune.training.inference.prediction import predict

Kind = Literal["llama", "gpt2"]
METHODS = (
    "LoRA(r=8)",
    "IA3()",
    "Prefix(length=6)",
    "Bottleneck(size=16)",
    "DoRA(r=4)",
    "VeRA(r=16)",
    "Prompt(length=5)",
    "ReFT(r=4, first=2, last=1)",
    "LoRA(r=2, sites='*.ffn.{in,out}')",
    "Compacter(size=16)",
    "LoHa(r=4)",
    "LoRA(r=4) + Prefix(length=4)",
    "MAM(size=16)",
    "UniPELT()",
    "OFT(block=16)",
    "LNTuning()",
)
WORDS, END = 1000, 2
"""Size of the vocabulary, and the token that ends a text."""
TOKENS = (4, 48)
"""Words of a prompt: from, to."""
SENTIMENT = Classify(labels=("bad", "fair", "good"), max_length=96)
NAMES = Tag(tags=("O", "B-PER", "I-PER", "B-LOC"), max_length=96)
WRITING = Generate(max_length=128, new_tokens=16)


TIE = 1e-5
"""Difference of two logits that rounding in float32 may turn round; they are about 10."""


@dataclass(frozen=True)
class Question:
    """A request and its answer."""

    path: str
    body: dict[str, Any]
    """Without the field `stream`, which clients add as they like."""
    answer: Any
    """A text; or for each row the label with its score, or the tags."""
    tokens: int = 0
    """Tokens that are generated."""
    margin: float = float("inf")
    """The smallest difference between the two largest logits of a greedy answer."""

    @property
    def writes(self) -> bool:
        """Whether it writes a text."""
        return self.path == "/v1/completions"

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone may decide a token."""
        return self.margin < TIE


def write_base(folder: Path, kind: Kind = "llama", width: int = 128, layers: int = 4) -> Path:
    """A random model and its tokenizer, the same each time."""
    heads: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": END, "bos_token_id": END, "vocab_size": WORDS}
    if kind == "llama":
        config: Any = LlamaConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, **heads,
        )  # fmt: skip
    else:
        config = GPT2Config(
            n_embd=width, n_inner=2 * width, n_layer=layers, n_head=4, n_positions=512, initializer_range=0.1, **heads
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words."""
    special = ["[PAD]", "[UNK]", "[SEP]"]
    words = {word: number for number, word in enumerate([*special, *(f"w{i}" for i in range(3, WORDS))])}
    made = Tokenizer(WordLevel(words, "[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", sep_token="[SEP]"
    )


def open_base(folder: Path) -> Host:
    """A host of the base in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Host(model.eval())


def task_of(number: int) -> Any:
    """The task of an adapter: of six, four write, one classifies, one tags."""
    return {4: SENTIMENT, 5: NAMES}.get(number % 6, WRITING)


def write_adapters(folder: Path, host: Host, count: int, model: str) -> dict[str, Any]:
    """Folders of adapters with random values; returns their tasks."""
    tasks: dict[str, Any] = {}
    for number in range(count):
        method, task, name = METHODS[number % len(METHODS)], task_of(number), f"adapter-{number:03}"
        head = task.make_head(host.model.config, number)
        host.attach(name, parse(method), head=head or False, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for _, parameter in host.trainable(name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        host.save(name, folder / name, extra={"task": task.to_json(), "model": model})
        tasks[name] = task
    return tasks


class ChosenTokens(LogitsProcessor):
    """Lets `generate` take the tokens that a sampler chooses, and notes how near the second was."""

    def __init__(self, sampler: RowSampler) -> None:
        self.sampler, self.margin = sampler, float("inf")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores[0, :WORDS].float()  # virtual tokens have logits behind those of the vocabulary
        first, second = logits.topk(2).values.tolist()
        self.margin = min(self.margin, first - second)
        token = self.sampler.choose(logits).token
        self.sampler.count(token)
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def written(
    host: Host, adapters: dict[str, float], prompt: Sequence[int], sampling: Sampling
) -> tuple[list[int], float]:
    """The tokens that `host.generate` gives for one prompt alone, and the margin of the nearest choice."""
    ids, chosen = torch.tensor([list(prompt)]), ChosenTokens(RowSampler(sampling, prompt))
    with host.using(adapters or None, training=False), torch.inference_mode():
        out = host.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=sampling.max_tokens, do_sample=False,
            logits_processor=LogitsProcessorList([chosen]), pad_token_id=0,
            eos_token_id=WORDS if sampling.ignore_eos else END,
        )  # fmt: skip
    new = out[0, len(prompt) :].tolist()
    return (new[: new.index(END)] if END in new and not sampling.ignore_eos else new), chosen.margin


def questions(host: Host, tasks: dict[str, Any], rounds: int, seed: int = 0) -> list[Question]:
    """`rounds` questions to each adapter, some of them to two at once."""
    draw, tokenizer, asked = random.Random(seed), word_tokenizer(), []
    writers = [name for name, task in tasks.items() if task is WRITING]
    weighed = [name for name in writers if not host.adapters[name].needs.virtual_tokens and host.adapters[name].mixes]
    for name, task in [*tasks.items()] * rounds:
        if task is not WRITING:
            asked.append(reading(host, tokenizer, name, task, draw))
            continue
        adapters = {name: 1.0}
        if name in weighed and draw.random() < 0.4:
            adapters = {name: 0.7}
            if draw.random() < 0.5:
                adapters[draw.choice([other for other in weighed if other != name])] = 0.3
        asked.append(writing(host, tokenizer, adapters, *prompt_of(draw)))
    return asked


def on_base(host: Host, asked: Sequence[Question]) -> list[Question]:
    """The questions that want a text, asked of the bare base."""
    tokenizer = word_tokenizer()
    bodies = [question.body for question in asked if question.writes]
    return [
        writing(host, tokenizer, {}, body["prompt"], {key: body[key] for key in body if key not in ("model", "prompt")})
        for body in bodies
    ]


def prompt_of(draw: random.Random) -> tuple[list[int], dict[str, Any]]:
    """A prompt, and how it is to be continued: greedily, or with a seed."""
    prompt = [draw.randrange(3, WORDS) for _ in range(draw.randint(*TOKENS))]
    more: dict[str, Any] = {"max_tokens": draw.randint(4, 32), "temperature": 0, "ignore_eos": draw.random() < 0.8}
    if draw.random() < 0.4:
        more |= {"temperature": 0.8, "top_p": 0.9, "seed": draw.randrange(10**6)}
    return prompt, more


def writing(
    host: Host, tokenizer: PreTrainedTokenizerFast, adapters: dict[str, float], prompt: list[int], more: dict[str, Any]
) -> Question:
    """A prompt to continue."""
    ids, margin = written(host, adapters, prompt, Sampling(**more))
    model = "+".join(f"{name}:{weight:g}" for name, weight in adapters.items()) or "base"
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    body = {"model": model, "prompt": prompt, **more}
    return Question("/v1/completions", body, text, len(ids), float("inf") if more["temperature"] else margin)


def reading(host: Host, tokenizer: PreTrainedTokenizerFast, name: str, task: Any, draw: random.Random) -> Question:
    """Texts to classify or to tag."""
    lengths = [draw.randint(*TOKENS) for _ in range(draw.randint(1, 4))]
    texts = [" ".join(f"w{draw.randrange(3, WORDS)}" for _ in range(length)) for length in lengths]
    tags = task is NAMES
    rows = row_inputs(task, [{task.text[0]: text.split() if tags else text} for text in texts])
    answers = task.decode(predict(host, name, task, rows, tokenizer, precision="float32"))
    return Question("/v1/tag" if tags else "/v1/classify", {"model": name, "input": texts}, answers)
