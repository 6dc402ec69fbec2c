"""A new language's words for a model: tokens learnt from its texts, put behind the tokenizer's own.

learned = learn_tokens(texts, tokenizer, 4000)
merged, growth = merge(tokenizer, learned, probes=old_texts)
grow_embeddings_(model, merged, growth.old_size)
"""

from deltatune.training.tokenizer_extension.add_tokens import Growth, merge, tokens_per_character
from deltatune.training.tokenizer_extension.learn_tokens import Learned, learn_tokens
from deltatune.training.tokenizer_extension.resize_embeddings import grow_embeddings_

__all__ = ["Growth", "Learned", "grow_embeddings_", "learn_tokens", "merge", "tokens_per_character"]
