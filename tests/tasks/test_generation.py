"""Text generation: learning, batches equal single rows, beams, sampling, scores against references."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate, task_from_json
from deltatune.tasks.collator import collator_for
from deltatune.tasks.generation import METRICS
from deltatune.training import Settings, encode_for, predict, train
from deltatune.training.inference.decoding import before_stop, generate_texts
from deltatune.training.inference.likelihood import negative_log_likelihoods
from support import models, vocabularies
from support.chats import CHATML
from support.language_models import LM_KINDS, generation_tokenizer, lm_host, make_rows

TASK = Generate(max_length=48, new_tokens=12)
QUICK = Settings(epochs=1, batch_size=8, learning_rate=1e-2, precision="float32", max_grad_norm=0.0)
LOUD = {"t5": {"initializer_factor": 2.0}, "bart": {"init_std": 1.0}}
"""Weights so large that what is written depends on what was read."""


# --- training ---


@pytest.mark.parametrize("kind", LM_KINDS)
def test_pieces_of_a_batch_do_not_change_the_loss(kind):
    """Mixed lengths: the mean is over the tokens of the whole batch, not of means."""
    histories = []
    for accumulation in (1, 4):
        host = lm_host(kind)
        settings = dataclasses.replace(QUICK, accumulation=accumulation, schedule="constant", warmup=0.0)
        histories.append(train(host, "a", TASK, make_rows(40), None, generation_tokenizer(), settings).history)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5, atol=1e-6)
    assert len(histories[0]) == 5


@pytest.mark.parametrize("kind", LM_KINDS)
def test_every_family_learns_to_write_and_to_stop(kind):
    host, tokenizer = lm_host(kind, "Full()", randomize=False), generation_tokenizer()
    draw = [("good" if i % 2 else "bad", "the film" if i % 3 else "it") for i in range(12)]
    rows = [{"input": f"{one} {other}", "output": f"{other} is {one}"} for one, other in draw * 12]
    settings = Settings(epochs=8, batch_size=16, learning_rate=5e-3, precision="float32")
    outcome = train(host, "a", TASK, rows, rows[:12], tokenizer, settings)
    scores = outcome.evaluations[-1][1]
    assert scores["em"] == 1.0, scores
    assert next(iter(scores)) == "rougeL"
    assert scores["perplexity"] < 1.2
    answers = predict(host, "a", TASK, rows[:4], tokenizer, precision="float32")
    assert TASK.decode(answers) == [{"text": row["output"]} for row in rows[:4]]


def test_chats_are_learned_and_answered():
    tokenizer = generation_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["(", ")"]})
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "(").replace("<|im_end|>", ")")
    task = Generate(text=("messages",), max_length=96, new_tokens=8)
    rows = []
    for i in range(96):
        one, other = models.WORDS[i % 2], models.WORDS[5 + i % 2]
        turns = [("user", one), ("assistant", other), ("user", other), ("assistant", one)]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    host = lm_host("llama", "Full()", randomize=False)
    settings = Settings(epochs=8, batch_size=16, learning_rate=5e-3, precision="float32")
    assert task.stops(tokenizer) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(")")}
    scores = train(host, "a", task, rows, rows[:8], tokenizer, settings).evaluations[-1][1]
    assert scores["em"] == 1.0, scores


# --- writing ---


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", LM_KINDS)
@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prefix(length=3)", "Prompt(length=3)"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_written_alike_alone_and_in_a_batch(kind, method, beams):
    host = lm_host(kind, method, **LOUD.get(kind, {}))
    task = dataclasses.replace(TASK, beams=beams)
    results = []
    for side, size in (("right", 7), ("left", 7), ("right", 1)):
        tokenizer = generation_tokenizer(side)
        results.append([a["text"] for a in predict(host, "a", task, make_rows(7), tokenizer, size, "float32")])
    assert results[0] == results[1] == results[2]
    assert len(set(results[0])) > 1


@pytest.mark.parametrize("kind", LM_KINDS)
def test_the_base_and_its_adapter_write_what_generate_writes(kind):
    host, tokenizer = lm_host(kind), generation_tokenizer()
    (text,) = [a["text"] for a in predict(host, "a", TASK, make_rows(1), tokenizer, 1, "float32")]
    encoded = encode_for(host, "a", TASK, make_rows(1), tokenizer, labelled=False)
    ids = torch.tensor([encoded.facts[0]["prompt"]])
    out = host.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0]
    out = out[1:] if kind in ("t5", "bart") else out[ids.shape[1] :]
    assert text == tokenizer.decode(out, skip_special_tokens=True).strip()


def test_the_models_habits_change_nothing():
    """A model folder may say to sample, to repeat nothing or to write at least 56 tokens; the task decides."""
    host, tokenizer = lm_host("llama"), generation_tokenizer()
    before = predict(host, "a", TASK, make_rows(5), tokenizer, precision="float32")
    own = host.model.generation_config
    own.update(repetition_penalty=1.9, min_length=40, suppress_tokens=list(range(5, 60)), do_sample=True, top_k=3)
    stored = own.to_dict()
    assert predict(host, "a", TASK, make_rows(5), tokenizer, precision="float32") == before
    assert host.model.generation_config is own
    assert own.to_dict() == stored


def test_sampling_draws_from_its_seed_and_leaves_the_global_generator_alone():
    host, tokenizer = lm_host("llama"), generation_tokenizer()
    task = dataclasses.replace(TASK, temperature=1.5)

    def texts(task):
        return [a["text"] for a in predict(host, "a", task, make_rows(6), tokenizer, precision="float32")]

    state = torch.random.get_rng_state()
    one = texts(task)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(77)
    assert texts(task) == one
    assert texts(dataclasses.replace(task, seed=1)) != one
    greedy = texts(TASK)
    assert one != greedy
    assert texts(dataclasses.replace(task, top_k=1)) == greedy
    assert texts(dataclasses.replace(task, top_p=1e-6)) == greedy


def test_top_k_0_takes_all_words():
    """Not the 50 that transformers takes where nothing is said."""
    task = dataclasses.replace(TASK, temperature=1e6, new_tokens=30)
    assert len({token for ids in written_ids(task, make_rows(60)) for token in ids}) > 80


def written_ids(task, rows):
    tokenizer = generation_tokenizer()
    tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))
    results = predict(lm_host("llama"), "a", task, rows, tokenizer, precision="float32")
    return [[int(token) for token in answer["text"].split()] for answer in results]


def test_no_sequence_is_written_twice():
    rows = make_rows(6)
    assert any(len(set(ids)) < len(ids) for ids in written_ids(TASK, rows))
    assert all(len(set(ids)) == len(ids) for ids in written_ids(dataclasses.replace(TASK, no_repeat_ngram=1), rows))


def test_more_beams_find_likelier_texts():
    host, tokenizer = lm_host("llama"), generation_tokenizer()
    rows, sums = make_rows(6), []
    for beams in (1, 6):
        task = dataclasses.replace(TASK, beams=beams, new_tokens=4, length_penalty=0.0)
        texts = [a["text"] for a in predict(host, "a", task, rows, tokenizer, precision="float32")]
        sums.append(texts)
    assert sums[0] != sums[1]


def test_an_answer_ends_before_the_first_token_that_ends_it():
    assert before_stop([5, 6, 2, 7], {2, 3}) == [5, 6]
    assert before_stop([5, 6], {2}) == [5, 6]
    assert before_stop([2], {2}) == []


def test_no_prompt_gives_no_text():
    assert predict(lm_host("llama"), "a", TASK, [], generation_tokenizer()) == []
    assert generate_texts(lm_host("llama"), TASK, [], generation_tokenizer()) == []


# --- scores ---


@pytest.mark.parametrize("kind", LM_KINDS)
def test_perplexity_is_that_of_the_reference(kind):
    host, tokenizer, rows = lm_host(kind), generation_tokenizer(), make_rows(6)
    encoded = encode_for(host, "a", TASK, rows, tokenizer)
    answers = predict(host, "a", TASK, encoded, tokenizer, precision="float32")
    scores = TASK.score(answers, encoded.references)
    with torch.no_grad():
        sums = negative_log_likelihoods(
            host, TASK, encoded, collator_for(host.model, tokenizer, encoded[0], left=False), False
        )
    nll, tokens = sum(own[0] for own in sums), sum(own[1] for own in sums)
    assert scores["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert [answer["tokens"] for answer in answers] == [int(own[1]) for own in sums]


def test_an_answer_is_compared_with_all_its_references():
    rows = [{"input": "a", "output": "good film", "references": ["good film", "great film"]}]
    encoded = TASK.encode(rows, generation_tokenizer())
    assert encoded.references == [["good film", "great film"]]
    one, other = ({"text": text, "nll": 2.0, "tokens": 2} for text in ("great film", "bad"))
    assert TASK.score([one], encoded.references)["em"] == 1.0
    scores = TASK.score([other], encoded.references)
    assert scores["em"] == 0.0
    assert scores["perplexity"] == pytest.approx(math.e)
    assert set(scores) == set(METRICS)
    assert "perplexity" not in TASK.score([{"text": "bad"}], encoded.references)
    weights = np.array([[1], [2]])
    assert TASK.resampled([one], encoded.references, weights).tolist() == [1.0, 1.0]
    with pytest.raises(DeltatuneError, match="these answers have no perplexity"):
        dataclasses.replace(TASK, metric="perplexity").resampled([{"text": "a"}], [["b"]], weights)


def test_bad_fields_are_named():
    for fields, message in [
        ({"metric": "rouge"}, "not a metric of generation, did you mean 'rouge"),
        ({"beams": 0}, "beams must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"text": ()}, "at least one column"),
    ]:
        with pytest.raises(DeltatuneError, match=message):
            Generate(**fields)
    task = Generate(prompt="Q: {input}", beams=4, characters=True)
    assert task_from_json(task.to_json()) == task


def test_prompts_leave_room_for_an_adapter_and_the_answer():
    host = lm_host("gpt2", "Prompt(length=5)")
    tokenizer = generation_tokenizer()
    full = Generate(max_length=models.POSITIONS, new_tokens=12)
    with pytest.raises(DeltatuneError, match=f"set max_length to {models.POSITIONS - 5} or less"):
        predict(host, "a", full, make_rows(1), tokenizer)
    task = dataclasses.replace(full, max_length=models.POSITIONS - 5)
    (answer,) = predict(host, "a", task, [{"input": "film " * 300, "output": "it"}], tokenizer, precision="float32")
    assert answer["text"]
    assert deltatune.__all__


def test_a_sentinel_opens_every_answer_of_an_encoder_decoder():
    tokenizer = vocabularies.tokenizer("t5")
    rows = [{"input": "The reader liked the film yesterday.", "output": "A writer forgot the plot."}]
    plain, opened = (Generate(max_length=64, new_tokens=24, sentinel=name) for name in ("", "<extra_id_0>"))
    one, other = (task.encode(rows, tokenizer, joined=False).rows[0] for task in (plain, opened))
    assert other["labels"] == [tokenizer.convert_tokens_to_ids("<extra_id_0>"), *one["labels"]]
    assert other["input_ids"] == one["input_ids"]
    with pytest.raises(DeltatuneError, match="decoders"):
        opened.encode(rows, tokenizer, joined=True)
    with pytest.raises(DeltatuneError, match="no such token"):
        Generate(sentinel="<nothing>").encode(rows, tokenizer, joined=False)
