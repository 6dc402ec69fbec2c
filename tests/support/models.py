"""The tiny random models of `deltatune.testing`, and a tokenizer for them: nothing is downloaded.

model = tiny("llama", "lm")
model(**inputs("llama"))
"""

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deltatune.testing.tiny_models import (
    BOS,
    CONFIGS,
    ENCODER_DECODERS,
    ENCODERS,
    EOS,
    LABELS,
    MASK,
    PAD,
    POSITIONS,
    UNK,
    VOCABULARY,
    Head,
    Kind,
    inputs,
    tiny,
)

__all__ = [
    "BOS",
    "CONFIGS",
    "ENCODERS",
    "ENCODER_DECODERS",
    "EOS",
    "LABELS",
    "MASK",
    "PAD",
    "POSITIONS",
    "UNK",
    "VOCABULARY",
    "Head",
    "Kind",
    "inputs",
    "tiny",
    "tiny_tokenizer",
]

WORDS = [
    "good",
    "bad",
    "great",
    "awful",
    "film",
    "the",
    "is",
    "not",
    "and",
    "was",
    "very",
    "it",
    "this",
    "plot",
    "actor",
]
"""The words that are one token; any other ASCII word is spelled in letters."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of VOCABULARY entries: WORDS, letters, digits and some punctuation."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS, *characters, *(f"##{c}" for c in characters)]
    pieces += list(".,!?'-():;\"/_=+*%#&@<>")[: VOCABULARY - len(pieces)]
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", BOS), ("[SEP]", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
