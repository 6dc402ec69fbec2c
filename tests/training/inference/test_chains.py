"""Chains of thought on tiny models: two stages, samples that depend on the row alone, the end at another question."""

from dataclasses import replace

import pytest
import torch

from deltatune import Host, LoRA
from deltatune.tasks.reasoning import Reason
from deltatune.training.inference.decoding import RowNoise, generate_texts
from deltatune.training.inference.prediction import encode_for, predict
from support import models
from support.language_models import LM_KINDS, generation_tokenizer, randomize_

ROWS = [
    {"question": "the film was good", "answer": "5"},
    {"question": "it is not very bad and the plot is great", "answer": "7"},
    {"question": "the actor", "answer": "1"},
]
SIZES = {"max_length": 128, "new_tokens": 8, "answer_tokens": 4}


def host_of(kind: str) -> Host:
    host = Host(models.tiny(kind, "lm", dropout=False))
    host.attach("a", LoRA(r=4), head=False)
    randomize_(host)
    return host


def answers(host, task, rows=ROWS, batch_size=2):
    return predict(host, "a", task, rows, generation_tokenizer(), batch_size, precision="float32")


@pytest.mark.parametrize("kind", LM_KINDS)
def test_a_chain_goes_through_both_stages(kind):
    host, task = host_of(kind), Reason(trigger="it is", answer_trigger="so", **SIZES)
    tokenizer = generation_tokenizer()
    encoded = encode_for(host, "a", task, ROWS, tokenizer)
    plain = replace(task, new_tokens=8)
    chains = generate_texts(host, plain, [fact["prompt"] for fact in encoded.facts], tokenizer)
    found = answers(host, task, encoded)
    assert [answer["rationale"] for answer in found] == [task.cut(chain) for chain in chains]
    assert all(answer["text"].startswith(f"{answer['rationale']}\nso ") for answer in found)
    assert set(task.score(found, encoded.references)) == {"final_answer", "answered"}
    assert len(task.decode(found)) == 3


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_samples_depend_on_the_row_the_seed_and_the_sample_alone(kind):
    host = host_of(kind)
    task = Reason(samples=3, demonstrations=("the film is good. The answer is 5.",), temperature=1.5, **SIZES)
    together = answers(host, task, batch_size=9)
    assert together == answers(host, task, batch_size=2)
    assert together[1:] == answers(host, task, ROWS[1:], batch_size=4)
    assert together != answers(host, replace(task, seed=1))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    answers(host, task)
    assert torch.equal(before, torch.random.get_rng_state())


def test_several_samples_are_drawn_and_one_is_greedy():
    host, tokenizer = host_of("gpt2"), generation_tokenizer()
    task = Reason(trigger="it", temperature=2.0, **SIZES)
    prompt = encode_for(host, "a", task, ROWS[:1], tokenizer).facts[0]["prompt"]
    drawn = generate_texts(
        host, replace(task, temperature=0.0), [prompt] * 6, tokenizer, draws=list("abcdef"), chains=task
    )
    assert len(set(drawn)) > 1
    assert Reason(samples=3).chain_temperature == 0.7
    assert Reason().chain_temperature == 0.0
    assert answers(host, Reason(**SIZES)) == answers(host, Reason(seed=3, **SIZES))


def test_noise_of_a_row_draws_from_its_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    noise = RowNoise(0, [str(i) for i in range(4000)])
    picked = noise(None, probabilities.log().repeat(4000, 1)).argmax(-1)
    shares = torch.bincount(picked, minlength=4) / 4000
    assert torch.allclose(shares, probabilities, atol=0.03)
    assert shares[3] == 0


def test_a_chain_ends_at_the_next_question(monkeypatch):
    host, tokenizer = host_of("gpt2"), generation_tokenizer()
    task = replace(Reason(trigger="it", **SIZES), new_tokens=60)
    seen = []

    def fake(ids, **options):
        seen.append(ids)
        return ["5\nQ: another"] * len(ids)

    prompt = encode_for(host, "a", task, ROWS[:1], tokenizer).facts[0]["prompt"]
    whole = generate_texts(host, task, [prompt], tokenizer)[0]
    monkeypatch.setattr(tokenizer, "batch_decode", fake)
    short = generate_texts(host, task, [prompt], tokenizer)[0]
    assert len(seen) == 1  # every row had ended after one token
    assert len(short) < len(whole)


def test_top_k_and_top_p_restrict_the_draws():
    host, tokenizer = host_of("gpt2"), generation_tokenizer()
    task = Reason(trigger="it", temperature=1.0, top_k=1, **SIZES)
    prompt = encode_for(host, "a", task, ROWS[:1], tokenizer).facts[0]["prompt"]
    greedy = generate_texts(host, replace(task, temperature=0.0), [prompt], tokenizer)
    for narrow in (task, replace(task, top_k=0, top_p=1e-6)):
        assert (
            generate_texts(host, replace(task, temperature=0.0), [prompt], tokenizer, draws=["x"], chains=narrow)
            == greedy
        )
