"""The models and tokenizers of the golden prompting cases, and scores of their rows by a task of label words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from deltatune import Host
from deltatune.prompting.prompt_method import attach_prompt
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.task import Task
from deltatune.training.session import Session
from support.golden_cases import PROVENANCE, tensors

LANGUAGE_MODELS: dict[str, tuple[Any, Any]] = {
    "prompting_bert": (BertForMaskedLM, BertConfig),
    "prompting_gpt2": (GPT2LMHeadModel, GPT2Config),
    "prompting_lm_bff_templates": (T5ForConditionalGeneration, T5Config),
}


def settings(case: str) -> dict[str, Any]:
    """What the provenance of a case says of its inputs."""
    found: dict[str, Any] = PROVENANCE[case]["settings"]
    return found


def language_model(case: str) -> PreTrainedModel:
    """The tiny model of a case in eval mode; its tied tensors are in the case once."""
    model_class, config_class = LANGUAGE_MODELS[case]
    model = model_class(config_class(**settings(case)[config_class.__name__]))
    missing, unexpected = model.load_state_dict(tensors(case, "base."), strict=False)
    assert not unexpected
    assert all("decoder." in name or "lm_head" in name or "embed_tokens" in name for name in missing), missing
    model.tie_weights()
    return model.eval()


def golden_tokenizer(case: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a case's model: WordPiece for BERT, whole words split as GPT-2 splits them for GPT-2."""
    vocabulary = {word: i for i, word in enumerate(settings(case)["vocabulary"])}
    if case == "prompting_bert":
        return BertTokenizer(vocab=vocabulary, do_lower_case=False)
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token=end, eos_token=end, pad_token=end, padding_side="left"
    )


def golden_session(case: str, task: Task) -> Session:
    """A session of a case's model with an adapter without tensors."""
    session = Session("golden", Host(language_model(case)), golden_tokenizer(case), task, precision="float32")
    return attach_prompt(session, ZeroShot(), task)


def scores(session: Session, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Scores of the classes (N, C)."""
    return torch.from_numpy(np.asarray(session.predict(session.encode(rows, labelled=False))))
