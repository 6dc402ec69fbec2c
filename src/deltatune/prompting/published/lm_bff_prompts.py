"""Manual templates and label words of LM-BFF: Gao et al. 2021, table 1, https://arxiv.org/abs/2012.15723.

Not here: STS-B, whose labels are numbers.
"""

from __future__ import annotations

from typing import Final

from deltatune.prompting.published.published_prompt import LM_BFF, PublishedPrompt

_IT_WAS: Final = ("{text} It was {mask}.",)
_THIS_IS: Final = ("{text} This is {mask}.",)
_NLI: Final = ("premise", "hypothesis")
_QUESTION: Final = ("{a:stem}? {mask}, {b:lower}",)
_ENTAILED: Final = {"entailment": ("Yes",), "not_entailment": ("No",)}

LM_BFF_PROMPTS: tuple[PublishedPrompt, ...] = (
    PublishedPrompt(
        name="lm-bff-sentiment",
        source=LM_BFF,
        task="sentiment",
        datasets=("sst2", "mr", "cr", "mpqa"),
        texts=("text",),
        templates=_IT_WAS,
        words={"negative": ("terrible",), "positive": ("great",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="lm-bff-sst5",
        source=LM_BFF,
        task="sentiment",
        datasets=("sst5",),
        texts=("text",),
        templates=_IT_WAS,
        words={
            "very negative": ("terrible",),
            "negative": ("bad",),
            "neutral": ("okay",),
            "positive": ("good",),
            "very positive": ("great",),
        },
        numbered=True,
    ),
    PublishedPrompt(
        name="lm-bff-subj",
        source=LM_BFF,
        task="subjectivity",
        datasets=("subj",),
        texts=("text",),
        templates=_THIS_IS,
        words={"subjective": ("subjective",), "objective": ("objective",)},
    ),
    PublishedPrompt(
        name="lm-bff-trec",
        source=LM_BFF,
        task="question type",
        datasets=("trec", "trec6"),
        texts=("text",),
        templates=("{mask}: {text}",),
        words={
            "ABBR": ("Expression",),
            "DESC": ("Description",),
            "ENTY": ("Entity",),
            "HUM": ("Human",),
            "LOC": ("Location",),
            "NUM": ("Number",),
        },
    ),
    PublishedPrompt(
        name="lm-bff-cola",
        source=LM_BFF,
        task="acceptability",
        datasets=("cola",),
        texts=("text",),
        templates=_THIS_IS,
        words={"unacceptable": ("incorrect",), "acceptable": ("correct",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="lm-bff-nli",
        source=LM_BFF,
        task="entailment",
        datasets=("mnli", "snli"),
        texts=_NLI,
        templates=_QUESTION,
        words={"entailment": ("Yes",), "neutral": ("Maybe",), "contradiction": ("No",)},
        numbered=True,
    ),
    PublishedPrompt(
        name="lm-bff-rte",
        source=LM_BFF,
        task="entailment",
        datasets=("rte",),
        texts=_NLI,
        templates=_QUESTION,
        words=_ENTAILED,
        numbered=True,
    ),
    PublishedPrompt(
        name="lm-bff-qnli",
        source=LM_BFF,
        task="entailment",
        datasets=("qnli",),
        texts=("question", "sentence"),
        templates=_QUESTION,
        words=_ENTAILED,
        numbered=True,
    ),
    PublishedPrompt(
        name="lm-bff-paraphrase",
        source=LM_BFF,
        task="paraphrase",
        datasets=("mrpc", "qqp"),
        texts=("sentence1", "sentence2"),
        templates=("{a} {mask}, {b:lower}",),
        words={"not_equivalent": ("No",), "equivalent": ("Yes",)},
        numbered=True,
    ),
)
"""The manual prompts of LM-BFF."""
