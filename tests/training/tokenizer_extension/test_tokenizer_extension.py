"""A new language's tokens behind a tokenizer's own: old ids keep their meaning, new texts are cut shorter."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from deltatune.core.errors import DeltatuneError
from deltatune.training.tokenizer_extension import add_tokens, tokens_per_character
from deltatune.training.tokenizer_extension.learn_tokens import LearnedTokens, learn_tokens
from deltatune.training.tokenizer_extension.segmentation import is_boundary
from support import models, vocabularies
from support.vocabularies import HELD_OUT, KINDS, NEW, OLD

SIZE = 120


@pytest.fixture(scope="module")
def grown():
    """`grown(kind)`: the tokenizer, the learned tokens, the extended tokenizer and the extension; each made once."""
    made, before = {}, {}

    def make(kind):
        if kind not in made:
            old = vocabularies.tokenizer(kind)
            before[kind] = old.backend_tokenizer.to_str()
            learned = learn_tokens(NEW, old, SIZE)
            made[kind] = old, learned, *add_tokens(old, learned, known_texts=OLD)
        return made[kind]

    make.before = before
    return make


def ids(tokenizer, text, special=True):
    return tokenizer(text, add_special_tokens=special)["input_ids"]


def model_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_old_id_keeps_its_meaning(kind, grown):
    old, _, merged, growth = grown(kind)
    assert growth.old_size == max(old.get_vocab().values()) + 1
    assert growth.size == growth.old_size + len(growth.added) == max(merged.get_vocab().values()) + 1
    assert {piece: i for piece, i in merged.get_vocab().items() if i < growth.old_size} == old.get_vocab()
    new = [merged.convert_ids_to_tokens(i) for i in range(growth.old_size, growth.size)]
    assert tuple(new) == growth.added
    assert len(set(new)) == len(new) > 10
    assert not set(new) & set(old.get_vocab())


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_itself_stays_as_it_was(kind, grown):
    old = grown(kind)[0]
    assert old.backend_tokenizer.to_str() == grown.before[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_tokenizer_is_the_same_from_a_folder(kind, grown, tmp_path):
    merged = grown(kind)[2]
    merged.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = NEW + HELD_OUT + OLD
    assert [ids(again, text) for text in texts] == [ids(merged, text) for text in texts]
    assert again.get_vocab() == merged.get_vocab()
    assert again.chat_template == merged.chat_template
    assert again.special_tokens_map == merged.special_tokens_map


@pytest.mark.parametrize("kind", KINDS)
def test_new_texts_take_fewer_tokens_and_are_known(kind, grown):
    old, _, merged, _ = grown(kind)
    unknown = [[tok.unk_token_id in ids(tok, text, special=False) for text in HELD_OUT] for tok in (old, merged)]
    if any(unknown[0]):  # unknown texts are short: the old tokenizer gives them one token
        assert not any(unknown[1])
        assert tokens_per_character(merged, NEW) <= 1
    else:
        assert tokens_per_character(merged, HELD_OUT) < 0.5 * tokens_per_character(old, HELD_OUT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_added_token_is_what_its_own_text_is_cut_into(kind, grown):
    _, _, merged, growth = grown(kind)
    cut = merged.backend_tokenizer.model.tokenize
    for piece in growth.added:
        if kind == "suffix" and not piece.endswith("</w>"):
            # A piece inside a word: what follows, here a rare letter, belongs to no merge with it.
            assert cut(piece + "À")[0].value == piece
        elif not piece.startswith("##"):
            assert [token.value for token in cut(piece.removesuffix("</w>"))] == [piece]


@pytest.mark.parametrize("kind", KINDS)
def test_growth_tells_the_share_of_old_texts_that_are_cut_as_before(kind, grown):
    old, _, merged, growth = grown(kind)
    assert growth.unchanged == sum(ids(old, text) == ids(merged, text) for text in OLD) / len(OLD) > 0.7
    assert add_tokens(old, grown(kind)[1])[1].unchanged is None


def test_old_texts_that_learning_touches_are_counted():
    old = vocabularies.tokenizer("bytes")
    texts = [text for text in OLD if "theatre" in text]
    _, growth = add_tokens(old, learn_tokens(texts, old, 40), known_texts=OLD)
    assert growth.unchanged < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_the_post_processor_are_kept(kind, grown):
    old, _, merged, _ = grown(kind)
    assert merged.special_tokens_map == old.special_tokens_map
    assert merged.all_special_ids == old.all_special_ids
    for text in OLD[:5]:
        with_special, without = ids(merged, text), ids(merged, text, special=False)
        frame = [i for i in with_special if i not in without]
        assert frame == [i for i in ids(old, text) if i not in ids(old, text, special=False)]
    for name in old.all_special_tokens:
        assert ids(merged, name, special=False) == ids(old, name, special=False)
    backend = json.loads(merged.backend_tokenizer.to_str()), json.loads(old.backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens"):
        assert backend[0][part] == backend[1][part]


def test_the_chat_template_is_kept(grown):
    old, _, merged, _ = grown("behind")
    chat = [{"role": "user", "content": "The reader liked 12 books"}]
    assert merged.apply_chat_template(chat)["input_ids"] == old.apply_chat_template(chat)["input_ids"]
    assert merged.convert_tokens_to_ids("<|user|>") in merged.apply_chat_template(chat)["input_ids"]


def test_ids_of_special_tokens_behind_the_pieces_are_not_taken(grown):
    old, _, merged, growth = grown("behind")
    assert old.convert_tokens_to_ids("<|pad|>") == growth.old_size - 1
    assert merged.convert_tokens_to_ids("<|pad|>") == growth.old_size - 1


@given(st.text(st.characters(codec="utf-8")) | st.sampled_from(OLD + NEW))
@pytest.mark.parametrize("kind", ["bytes", "behind"])
def test_any_text_comes_back_from_bytes(kind, grown, text):
    merged = grown(kind)[2]
    assert merged.decode(ids(merged, text, special=False)) == text


@given(st.text(st.sampled_from("酒店很好 abc。É𝄞\n12"), max_size=30))
def test_any_text_comes_back_from_characters_with_byte_fallback(grown, text):
    old, _, merged, _ = grown("llama")
    assert merged.decode(ids(merged, text, special=False)) == old.decode(ids(old, text, special=False))


@pytest.mark.parametrize("kind", KINDS)
def test_learning_is_the_same_every_time(kind, grown):
    old, learned, _, _ = grown(kind)
    assert learn_tokens(iter(NEW), old, SIZE) == learned


@pytest.mark.parametrize("kind", ["bytes", "llama", "suffix", "t5", "wordpiece"])
def test_size_is_kept_to(kind, grown):
    learned = learn_tokens(NEW, grown(kind)[0], 25)
    assert len(learned.tokens) == 25
    assert len(set(learned.tokens)) == 25


def test_what_is_rare_is_not_learned(grown):
    old = grown("bytes")[0]
    texts = ["早餐早餐早餐", "饭"]
    merged, _ = add_tokens(old, learn_tokens(texts, old, 50))
    assert len(ids(merged, "饭", special=False)) == len(ids(old, "饭", special=False)) == 3
    assert len(ids(merged, "早餐", special=False)) == 1
    merged, _ = add_tokens(old, learn_tokens(texts, old, 50, min_count=1))
    assert len(ids(merged, "饭", special=False)) == 1


@pytest.mark.parametrize("kind", ["llama", "unigram", "wordpiece"])
def test_characters_come_first_by_their_count(kind, grown):
    old = grown(kind)[0]
    learned = learn_tokens(["晚 早 早 早 餐 餐 贵 贵 贵 贵"], old, 3)
    assert learned.tokens == ("贵", "早", "餐")
    assert "晚" not in learn_tokens(["晚 早 早 早 餐 餐 贵 贵 贵 贵"], old, 30).tokens
    assert "晚" in learn_tokens(["晚 早 早 早 餐 餐 贵 贵 贵 贵"], old, 30, min_count=1).tokens


@pytest.mark.parametrize("kind", ["llama", "unigram", "wordpiece"])
def test_the_rarest_characters_of_large_texts_stay_unknown(kind, grown):
    old = grown(kind)[0]
    texts = ["早 餐"] * 9000 + ["晚"] * 3
    assert "早" in learn_tokens(texts, old, 30).tokens
    assert "晚" not in learn_tokens(texts, old, 30).tokens
    assert "晚" in learn_tokens(texts[8000:], old, 30).tokens


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_new_is_learned(kind, grown):
    old, learned, _, _ = grown(kind)
    mixed = learn_tokens(NEW + OLD, old, SIZE)
    assert not set(mixed.tokens) & set(old.get_vocab())
    assert not set(learned.tokens) & set(old.get_vocab())


@pytest.mark.parametrize("kind", ["unigram", "t5", "wordpiece"])
def test_pieces_are_used_as_often_as_asked(kind, grown):
    old = grown(kind)[0]
    texts = ["unlikely likely"] * 8 + ["unlikeliest"] * 3
    learned = learn_tokens(texts, old, 40, min_count=4)
    merged, _ = add_tokens(old, learned)
    used = [piece for text in texts for piece in merged.tokenize(text)]
    longer = [token for token in learned.tokens if len(token.removeprefix("##")) > 1]
    assert longer
    assert not [token for token in longer if used.count(token) < 4]


def test_a_tokenizer_that_cuts_by_chance_is_learned_from_without_it():
    made = vocabularies.tokenizer("bytes")
    spec = json.loads(made.backend_tokenizer.to_str())
    spec["model"]["dropout"] = 0.5
    made._tokenizer = Tokenizer.from_str(json.dumps(spec))
    assert len({tuple(made.tokenize(OLD[0])) for _ in range(20)}) > 1
    learned = learn_tokens(NEW, made, 40)
    assert [learn_tokens(NEW, made, 40) for _ in range(3)] == [learned] * 3
    merged, growth = add_tokens(made, learned)
    assert growth.dropped == ()
    assert model_of(merged)["dropout"] == 0.5


def test_learning_goes_on_where_the_tokenizer_stopped(grown):
    """The old merges act first: a token that needs other cuts than theirs would never be made."""
    _, learned, merged, growth = grown("bytes")
    assert growth.dropped == ()
    assert growth.merges == len(learned.merges) > 0
    old = model_of(grown("bytes")[0])["merges"]
    assert model_of(merged)["merges"][: len(old)] == old


def test_tokens_that_cannot_be_reached_are_left_out_with_what_is_made_of_them(grown):
    old = grown("bytes")[0]
    assert old.tokenize("day") == ["day"]
    # In "xday" the old merges make "day" before (xd, ay) can be, so "xday" is never one token.
    made = [("x", "d"), ("a", "y"), ("xd", "ay"), ("xday", "!"), ("q", "z")]
    learned = LearnedTokens("BPE", ("xd", "xday", "xday!", "qz"), tuple(made))
    if "ay" not in old.get_vocab():
        learned = replace(learned, tokens=("xd", "ay", "xday", "xday!", "qz"))
    merged, growth = add_tokens(old, learned)
    assert set(growth.dropped) == {"xday", "xday!"}
    assert growth.added[-1] == "qz"
    assert merged.tokenize("xdqz xday!") == ["xd", "qz", "Ġ", "x", "day", "!"]
    assert ["xd", "ay"] not in model_of(merged)["merges"]


def test_a_piece_that_exists_is_not_added_twice_but_may_get_a_merge(grown):
    old = grown("bytes")[0]
    piece = next(piece for piece in old.get_vocab() if len(piece) == 3 and piece.isascii() and piece.isalpha())
    pair = next(tuple(pair) for pair in model_of(old)["merges"] if "".join(pair) == piece)
    _, growth = add_tokens(old, LearnedTokens("BPE", (piece, "qz"), (pair, ("q", "z"))))
    assert growth.added == ("qz",)
    assert growth.merges == 1


def test_two_languages_one_after_another(grown):
    _, _, merged, first = grown("bytes")
    greek = ["το ξενοδοχείο είναι καλό", "το δωμάτιο είναι μικρό", "το πρωινό είναι καλό"] * 3
    again, second = add_tokens(merged, learn_tokens(greek, merged, 30), known_texts=[*OLD, *NEW])
    assert second.old_size == first.size
    assert second.unchanged > 0.9
    assert tokens_per_character(again, greek) < 0.5 * tokens_per_character(merged, greek)
    assert [again.convert_ids_to_tokens(i) for i in range(first.size)] == [
        merged.convert_ids_to_tokens(i) for i in range(first.size)
    ]


def test_new_unigram_pieces_are_no_likelier_than_any_old_one(grown):
    _, learned, merged, growth = grown("unigram")
    scores = [score for _, score in model_of(merged)["vocab"]]
    old, new = scores[: growth.old_size], scores[growth.old_size :]
    assert max(new) <= min(old)
    assert max(new) - min(new) == pytest.approx(max(learned.scores) - min(learned.scores), abs=1e-6)


def test_wordpieces_inside_words_are_learned():
    old = vocabularies.tokenizer("wordpiece")
    words = [f"{start}berly" for start in ("bra", "cri", "dro", "fle", "gru", "pla", "ske", "tri")]
    merged, growth = add_tokens(old, learn_tokens([" ".join(words)], old, 3))
    assert "##berly" in growth.added
    for word in words:
        assert merged.tokenize(word)[-1].endswith("berly")
        assert len(merged.tokenize(word)) < len(old.tokenize(word))
    assert merged.decode(ids(merged, words[0], special=False)) == words[0]


def test_added_tokens_in_the_texts_are_not_learned_from(grown):
    old = grown("bytes")[0]
    with pytest.raises(DeltatuneError, match="nothing to learn"):
        learn_tokens(["<|user|><|user|>"] * 9, old, 10)


@pytest.mark.parametrize(
    ("left", "right", "apart"),
    [
        ("a", "b", False),
        ("店", "很", False),
        ("a", "店", True),
        ("店", "。", True),
        ("店", "2", True),
        ("2", "0", False),
        ("a", "▁", True),
        ("▁", "a", False),
        ("▁", "▁", False),
        ("!", "!", False),
        ("e", "\u0301", False),
        ("а", "a", True),  # Cyrillic, Latin
    ],
)
def test_is_boundary(left, right, apart):
    assert is_boundary(left, right) == apart


def test_digits_stay_alone_where_the_tokenizer_has_them_so():
    assert is_boundary("2", "0", digits=False)
    old = vocabularies.tokenizer("llama")
    assert "99" in old.get_vocab()
    texts = ["在2008年 在2008年"] * 9
    assert "2008" in learn_tokens(texts, old, 20).tokens
    spec = json.loads(old.backend_tokenizer.to_str())
    longer = {piece for piece in spec["model"]["vocab"] if sum(map(str.isdecimal, piece)) > 1 and "<" not in piece}
    vocab = {piece: i for piece, i in spec["model"]["vocab"].items() if piece not in longer}
    merges = [tuple(pair) for pair in spec["model"]["merges"] if not {*pair, "".join(pair)} & longer]
    alone = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, merges=merges)
    learned = learn_tokens(texts, alone, 20)
    assert "在" in learned.tokens
    assert not [token for token in learned.tokens if sum(map(str.isdecimal, token)) > 1]


def test_tokens_per_character_counts_without_special_tokens(grown):
    old = grown("bytes")[0]
    assert tokens_per_character(old, ["", "酒店"]) == 3
    assert ids(old, "酒店")[0] == old.bos_token_id
    with pytest.raises(DeltatuneError, match="no characters"):
        tokens_per_character(old, [""])


def test_what_cannot_be_is_refused(grown):
    old, learned, _, _ = grown("bytes")
    with pytest.raises(DeltatuneError, match=r"size=0(.|\n)*min_count=0"):
        learn_tokens(NEW, old, 0, min_count=0)
    with pytest.raises(DeltatuneError, match="nothing to learn"):
        learn_tokens([], old, 10)
    with pytest.raises(DeltatuneError, match="no tokens to learn"):
        learn_tokens(["酒"], old, 10)
    with pytest.raises(DeltatuneError, match="text 1 is NoneType"):
        learn_tokens(["酒店", None], old, 10)
    with pytest.raises(DeltatuneError, match="BPE tokens do not fit a WordPiece"):
        add_tokens(models.tiny_tokenizer(), learned)
    with pytest.raises(DeltatuneError, match="learned with another tokenizer"):
        add_tokens(old, replace(learned, merges=(("nowhere", "to be found"),)))
    with pytest.raises(DeltatuneError, match="fast tokenizer"):
        learn_tokens(NEW, object(), 10)
