"""What the engine generates equals what `host.generate` gives for each request alone, whatever runs beside it."""

import random
import threading
import time

import pytest
import torch

from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import GenerateRequest, Sampling, TokenEvent
from support.language_models import randomize_
from support.serving_engine import (
    METHODS,
    NO_CACHE,
    SMALL,
    answers,
    offline,
    random_requests,
    running,
    serving_host,
    settled,
)

MIXED = [{}, *({name: 1.0} for name in METHODS), {"lora": 0.3}, {"lora": 0.5, "bottleneck": -0.5}, {"prefix": 0.7}]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_thirty_requests_with_six_methods_equal_themselves_offline(kind):
    host = serving_host(kind)
    requests = random_requests(30, MIXED)
    with running(host) as engine:
        assert engine.continuous
        got = answers(engine, requests)
        statistics = settled(engine)
    assert got == [offline(host, request) for request in requests]
    assert statistics.passes < statistics.rows_read / 2, "rows shared no passes"
    assert statistics.running == statistics.queued == statistics.failed == 0
    assert statistics.tokens_out == sum(map(len, got))


@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_encoder_decoders_generate_in_whole_batches(kind):
    host = serving_host(kind)
    requests = random_requests(12, MIXED, new=6)
    with running(host) as engine:
        assert not engine.continuous
        assert answers(engine, requests) == [offline(host, request) for request in requests]


def test_rows_join_and_leave_at_random():
    host = serving_host(methods={name: METHODS[name] for name in ("lora", "prefix", "prompt", "bottleneck")})
    requests = random_requests(40, [{}, {"lora": 1.0}, {"prefix": 1.0}, {"prompt": 1.0}, {"bottleneck": 0.4}], number=1)
    draw, got = random.Random(2), {}

    def client(numbers):
        for number in numbers:
            time.sleep(draw.random() / 200)
            got[number] = engine.submit(requests[number]).result(60).ids

    with running(host, EngineLimits(rows=5, pass_tokens=32, cache_bytes=1 << 26, prompt_cache=False)) as engine:
        clients = [threading.Thread(target=client, args=(range(start, 40, 8),)) for start in range(8)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
    assert [got[number] for number in range(40)] == [offline(host, request) for request in requests]


def test_long_prompts_are_read_in_pieces_between_steps():
    host = serving_host(methods={"lora": "LoRA(r=4)", "prefix": "Prefix(length=3)"})
    long = random_requests(2, [{"lora": 1.0}, {"prefix": 1.0}], number=3, longest=1)
    long = [GenerateRequest(tuple(range(5, 95)), request.adapters, Sampling(max_tokens=5)) for request in long]
    short = GenerateRequest((7, 8, 9), {"prefix": 1.0}, Sampling(max_tokens=24))
    with running(host, EngineLimits(pass_tokens=16, cache_bytes=1 << 26, prompt_cache=False)) as engine:
        events = iter(engine.submit(short))
        assert isinstance(next(events), TokenEvent)
        tickets = [engine.submit(request) for request in long]
        arrivals = [time.monotonic() for event in events if isinstance(event, TokenEvent)]
        results = [ticket.result(60) for ticket in tickets]
    assert [result.ids for result in results] == [offline(host, request) for request in long]
    first = min(ticket.submitted + result.done.timings.first for ticket, result in zip(tickets, results, strict=True))
    beside = sum(arrival < first for arrival in arrivals)
    assert beside >= 4, f"the row that generated was held up: {beside} tokens while prompts of six passes were read"


def test_short_prompts_do_not_wait_for_a_long_one_to_be_read():
    host = serving_host(methods={})
    limits = EngineLimits(pass_tokens=16, cache_bytes=1 << 26, prompt_cache=False)
    requests = [GenerateRequest(tuple(range(5, 5 + length)), {}, Sampling(max_tokens=2)) for length in (95, 3, 5, 90)]
    with running(host, limits) as engine:
        tickets = engine.call(lambda _: [engine.submit(request) for request in requests]).result(60)
        results = [ticket.result(60) for ticket in tickets]
    firsts = [ticket.submitted + result.done.timings.first for ticket, result in zip(tickets, results, strict=True)]
    assert max(firsts[1:3]) < min(firsts[0], firsts[3])
    assert [result.ids for result in results] == [offline(host, request) for request in requests]


def test_prompts_that_an_adapter_sees_as_a_whole_are_read_at_once():
    methods = {
        "reft": "LoReFT(r=2, first=2, last=1)",
        "infix": 'Prefix(length=3, place="infix")',
        "idpg": "IDPG(length=2, hidden=3)",
    }
    host = serving_host(methods=methods)
    requests = random_requests(12, [{}, *({name: 1.0} for name in methods)], longest=40, shortest=2)
    with running(host, EngineLimits(pass_tokens=16, cache_bytes=1 << 26)) as engine:
        assert answers(engine, requests) == [offline(host, request) for request in requests]


@pytest.mark.parametrize(
    "exclusive",
    [
        pytest.param("Full()", marks=pytest.mark.slow),
        pytest.param("DID(dimension=20)", marks=pytest.mark.slow),
        "TopLayers(1)",
    ],
)
def test_adapters_of_the_weights_run_in_turns_with_the_others(exclusive):
    host = serving_host(methods={"lora": "LoRA(r=4)", "weights": exclusive})
    requests = random_requests(10, [{"lora": 1.0}, {"weights": 1.0}, {}], new=20)
    with running(host) as engine:
        assert answers(engine, requests) == [offline(host, request) for request in requests]


def token_by_token(host, request):
    """The tokens that follow, each from a pass over all tokens before it."""
    ids, front = list(request.prompt), []
    if "prompt" in request.adapters:
        first = host.sites.facts.vocabulary
        front = [first, first + 1]
    with host.using(dict(request.adapters)), torch.inference_mode():
        for _ in range(request.sampling.max_tokens):
            ids.append(int(host.model(input_ids=torch.tensor([front + ids])).logits[0, -1].argmax()))
    return ids[len(request.prompt) :]


@pytest.mark.parametrize("kind", ["phi3", pytest.param("llama", marks=pytest.mark.slow)])
def test_rows_on_both_sides_of_a_switch_of_the_positions(kind):
    """LongRoPE turns the positions of a whole pass otherwise for one long row; a row that becomes long is read anew."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    methods = {"lora": "LoRA(r=4)", "prompt": "Prompt(length=2)"}
    rope |= {"factor": 4.0, "partial_rotary_factor": 1.0}
    config = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
    host = serving_host(kind, methods, rope_parameters=rope, **config)
    adapters = [{}, {"lora": 1.0}, {"prompt": 1.0}]
    requests = random_requests(6, adapters, 3, longest=20, new=10)
    requests += random_requests(3, adapters, 5, shortest=40, longest=60, new=10)
    requests += random_requests(5, adapters, 6, shortest=25, longest=29, new=20)
    with running(host) as engine:
        assert engine.continuous
        got = answers(engine, requests)
    assert got == [token_by_token(host, request) for request in requests]
    if kind == "phi3":  # the others' generate goes on with the old keys
        assert got == [offline(host, request) for request in requests]


def test_a_sliding_window_is_part_of_the_mask():
    host = serving_host("mistral", {"lora": "LoRA(r=4)", "prompt": "Prompt(length=2)"}, sliding_window=6)
    requests = random_requests(10, [{}, {"lora": 1.0}, {"prompt": 1.0}], longest=30, new=12)
    with running(host, EngineLimits(pass_tokens=16, cache_bytes=1 << 26)) as engine:
        assert engine.continuous
        assert answers(engine, requests) == [offline(host, request) for request in requests]


# ---- the prompt cache


def test_the_prompt_cache_changes_no_token():
    host = serving_host()
    draw = random.Random(5)
    start = [draw.randrange(5, 100) for _ in range(40)]
    requests = []
    for _ in range(16):
        ids = start[: draw.randint(10, 40)] + [draw.randrange(5, 100) for _ in range(draw.randint(0, 8))]
        requests.append(GenerateRequest(tuple(ids), draw.choice(MIXED), Sampling(max_tokens=6)))
    with running(host, NO_CACHE) as engine:
        without = answers(engine, requests)
        assert engine.statistics().prompt_cache_hits == 0
    with running(host, SMALL) as engine:
        assert [engine.submit(request).result(60).ids for request in requests] == without
        statistics = engine.statistics()
    assert statistics.prompt_cache_hits >= 3
    assert statistics.cached_tokens >= 3 * 16
    assert without == [offline(host, request) for request in requests]


def test_the_prompt_cache_is_not_shared_between_keys_weights_or_adapters():
    host = serving_host(methods={"lora": "LoRA(r=4)", "other": "LoRA(r=4)"})
    ids = tuple(range(5, 45))
    with running(host) as engine:

        def cached(**request):
            return (
                engine.submit(GenerateRequest(ids, sampling=Sampling(max_tokens=1), **request))
                .result(60)
                .done.timings.cached_tokens
            )

        assert cached(adapters={"lora": 1.0}, cache_key="a") == 0
        assert cached(adapters={"lora": 1.0}, cache_key="a") == 32
        assert cached(adapters={"lora": 1.0}, cache_key="b") == 0
        assert cached(adapters={"lora": 0.5}, cache_key="a") == 0
        assert cached(adapters={"other": 1.0}, cache_key="a") == 0
        assert cached(cache_key="a") == 0


def test_the_prompt_cache_holds_nothing_of_values_that_were_changed():
    host = serving_host(methods={"lora": "LoRA(r=4)"})
    prompt = GenerateRequest(tuple(range(5, 45)), {"lora": 1.0}, Sampling(max_tokens=6))
    limits = EngineLimits(pass_tokens=8, cache_bytes=1 << 26, prompt_cache_bytes=1 << 24)
    with running(host, limits) as engine:
        for std in (0.3, 0.6):
            answers(engine, [prompt])
            during = engine.submit(prompt)  # may read its prompt in pieces before and after the change
            engine.call(lambda host, std=std: randomize_(host, "lora", std)).result(30)
            during.result(30)
            changed = engine.submit(prompt).result(30).ids
            assert changed == engine.call(lambda host: offline(host, prompt)).result(30)


def test_the_prompt_cache_keeps_within_its_bytes():
    host = serving_host(methods={})
    limits = EngineLimits(cache_bytes=1 << 26, prompt_cache_bytes=40_000)
    with running(host, limits) as engine:
        answers(engine, random_requests(30, [{}], longest=60))
        assert 0 < engine.statistics().prompt_cache_bytes <= 40_000


# ---- sampling


def test_a_rows_draws_are_those_of_the_row_alone():
    host = serving_host(methods={"lora": "LoRA(r=4)", "prefix": "Prefix(length=3)"})
    sampling = {"temperature": 0.9, "top_p": 0.9, "top_k": 30, "seed": 7}
    requests = random_requests(12, [{}, {"lora": 1.0}, {"prefix": 1.0}], **sampling)
    with running(host, NO_CACHE) as engine:
        together = answers(engine, requests)
        alone = [engine.submit(request).result(60).ids for request in requests]
        other = answers(
            engine,
            [
                GenerateRequest(r.prompt, r.adapters, Sampling(**{**sampling, "seed": 8, "max_tokens": 10}))
                for r in requests
            ],
        )
    assert together == alone
    assert other != together


def test_drawn_tokens_follow_the_models_distribution():
    host = serving_host(methods={})
    with running(host) as engine:
        tickets = [
            engine.submit(GenerateRequest((9, 8, 7), {}, Sampling(max_tokens=1, temperature=0.7, seed=seed)))
            for seed in range(400)
        ]
        drawn = [ticket.result(60).ids[0] for ticket in tickets]
    with torch.inference_mode():
        expected = (host.model(torch.tensor([[9, 8, 7]])).logits[0, -1] / 0.7).softmax(-1)
    counts = torch.bincount(torch.tensor(drawn), minlength=len(expected))
    likely = expected.topk(5).indices
    for token in likely.tolist():
        share, spread = float(expected[token]), float((expected[token] * (1 - expected[token]) / 400) ** 0.5)
        assert abs(float(counts[token]) / 400 - share) < 4.5 * spread


def test_logprobs_are_those_of_the_models_own_distribution():
    host = serving_host(methods={"lora": "LoRA(r=4)"})
    request = GenerateRequest(
        (9, 8, 7), {"lora": 1.0}, Sampling(max_tokens=3, logprobs=2, temperature=0.5, seed=1, logit_bias={11: 3.0})
    )
    with running(host) as engine:
        tokens = engine.submit(request).result(60).tokens
    ids = list(request.prompt)
    for event in tokens:
        with host.using("lora"), torch.inference_mode():
            expected = host.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert event.logprob == pytest.approx(float(expected[event.token]), abs=1e-4)
        assert [token for token, _ in event.top] == expected.topk(2).indices.tolist()
        ids.append(event.token)
