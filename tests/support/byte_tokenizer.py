"""A small byte-level BPE tokenizer, trained in memory, as decoders have it."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["the film was very good and the plot was thin", "It's 12345 o'clock, isn't it?", "Ünïcödé — 東京 🚀"] * 4


def byte_tokenizer(cut=None, **rules):
    """300 tokens of byte-level BPE. cut: pre-tokenizers in place of GPT-2's way of cutting."""
    tokenizer = Tokenizer(models.BPE(**rules))
    tokenizer.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
