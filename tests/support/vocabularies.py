"""Tiny tokenizers of every kind that can grow, and texts of an old and a new language for them."""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, CLIPTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

OLD = [
    f"{who} {does} the {what} {when}."
    for who in ("The reader", "A writer", "Nobody", "The other actor")
    for does in ("liked", "writes about", "was reading", "forgot")
    for what in ("film", "plot", "old theatre", "12 books", "rather long story")
    for when in ("yesterday", "in 1998", "again and again", "without thinking")
]
NEW = [
    f"{what}{how}，{also}。"
    for what in ("这家酒店的房间", "酒店的服务", "早餐", "前台的服务员", "这里的交通", "餐厅的菜")
    for how in ("很不错", "非常好", "比较差", "太差了", "还可以", "让人满意")
    for also in ("下次还会再来", "不会再来了", "价格也不贵", "离火车站很近", "房间有点小", "在2008年装修过")
]
HELD_OUT = ["酒店离火车站很近，房间不错，价格也不贵。", "服务员让人满意，早餐太差了。"]
CHAT = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
KINDS = ["bytes", "behind", "llama", "suffix", "unigram", "t5", "wordpiece"]


def tokenizer(kind):
    """A fresh tokenizer that was trained on OLD alone."""
    return {
        "bytes": byte_level,
        "behind": lambda: byte_level(behind=True),
        "llama": llama,
        "suffix": suffix,
        "unigram": unigram,
        "t5": lambda: T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), *_unigram_pieces()], extra_ids=3),
        "wordpiece": wordpiece,
    }[kind]()


def byte_level(behind=False):
    """Byte-level BPE that starts texts with a token, with a chat template; `behind`: special ids follow the pieces."""
    special = ["<|begin|>", "<|user|>", "<|pad|>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[] if behind else special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(OLD, trainer)
    made.add_special_tokens(special)
    begin = made.token_to_id("<|begin|>")
    made.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|begin|>", pad_token="<|pad|>", chat_template=CHAT, model_max_length=99
    )


def llama():
    """Characters with byte fallback, spaces as ▁, one word a text: sentencepiece's BPE."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    vocab, merges = _bpe_pieces(pre_tokenizers.Metaspace(), 150)
    return LlamaTokenizer(vocab=_after(special, vocab), merges=merges)


def suffix():
    """Byte-level BPE whose last piece of a word ends with </w>."""
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    parts = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab, merges = _bpe_pieces(parts, 500, end_of_word_suffix="</w>", initial_alphabet=alphabet)
    ends = [f"{char}</w>" for char in sorted(alphabet) if f"{char}</w>" not in vocab]
    return CLIPTokenizer(vocab=_after(["<|startoftext|>", "<|endoftext|>", *ends], vocab), merges=merges)


def unigram():
    made = Tokenizer(models.Unigram(_unigram_pieces(), unk_id=0))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def wordpiece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    made.train_from_iterator(OLD, trainer)
    return BertTokenizer(vocab=made.get_vocab())


def _after(special, vocab):
    return {piece: i for i, piece in enumerate([*special, *sorted(vocab, key=vocab.__getitem__)])}


@cache
def _unigram_pieces():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    made.train_from_iterator(OLD, trainer)
    return [(piece, score) for piece, score in json.loads(made.to_str())["model"]["vocab"]]


def _bpe_pieces(pre_tokenizer, size, **options):
    made = Tokenizer(models.BPE(**{name: value for name, value in options.items() if name == "end_of_word_suffix"}))
    made.pre_tokenizer = pre_tokenizer
    made.train_from_iterator(OLD, trainers.BpeTrainer(vocab_size=size, show_progress=False, **options))
    model = json.loads(made.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
