"""Tokenizer extension: tokens learned from texts of a new language or domain, added to a model's vocabulary.

learned = learn_tokens(texts, tokenizer, 4000)
extended, extension = add_tokens(tokenizer, learned, known_texts=old_texts)
resize_embeddings_(model, extended, extension.old_size)
"""

from deltatune.training.tokenizer_extension.add_tokens import Extension, add_tokens, tokens_per_character
from deltatune.training.tokenizer_extension.learn_tokens import LearnedTokens, learn_tokens
from deltatune.training.tokenizer_extension.resize_embeddings import resize_embeddings_

__all__ = ["Extension", "LearnedTokens", "add_tokens", "learn_tokens", "resize_embeddings_", "tokens_per_character"]
