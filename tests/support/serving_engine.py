"""A tiny language model with adapters of many methods, an engine over it, and the offline answers to its requests."""

import contextlib
import random

import torch

import deltatune
from deltatune.serving.engine.engine import Engine
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import GenerateRequest, Sampling
from deltatune.testing.tiny_models import ENCODER_DECODERS, tiny
from support.language_models import generation_tokenizer, randomize_

METHODS = {
    "lora": "LoRA(r=4)",
    "prefix": "Prefix(length=3)",
    "prompt": "Prompt(length=4)",
    "bottleneck": "Bottleneck(size=4)",
    "ia3": "IA3()",
    "reft": "LoReFT(r=2, first=2, last=1)",
}
SMALL = EngineLimits(cache_bytes=1 << 26, prompt_cache_bytes=1 << 24)
NO_CACHE = EngineLimits(cache_bytes=1 << 26, prompt_cache=False)


def serving_host(kind="llama", methods=METHODS, std=0.1, **config):
    """A host of a tiny model in float32 whose adapters have random values; nothing ends a text but a stop token."""
    model = tiny(kind, "lm", dropout=False, **config)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    host = deltatune.Host(model)
    for number, (name, method) in enumerate(methods.items()):
        host.attach(name, deltatune.parse(method), seed=number, head=False)
        randomize_(host, name, std)
    host.use(None)
    return host


@contextlib.contextmanager
def running(host, limits=SMALL, residency=None, tokenizer=None):
    """An engine that is closed afterwards; unless one is given, its tokenizer has no end token."""
    if tokenizer is None:
        tokenizer = generation_tokenizer()
        tokenizer.eos_token = None
    engine = Engine(host, tokenizer, residency, limits, precision="float32")
    try:
        yield engine
    finally:
        engine.close()


def random_requests(count, adapters, number=0, longest=24, new=10, shortest=1, **sampling):
    """Prompts of many lengths with an entry of `adapters` each."""
    draw = random.Random(number)
    return [
        GenerateRequest(
            tuple(draw.randrange(5, 100) for _ in range(draw.randint(shortest, longest))),
            draw.choice(adapters),
            Sampling(max_tokens=draw.randint(1, new), **sampling),
        )
        for _ in range(count)
    ]


def offline(host, request):
    """The tokens that `host.generate` gives for a request alone, greedily."""
    ids = torch.tensor([request.prompt])
    with host.using(dict(request.adapters)):
        out = host.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    apart = host.model.config.model_type in ENCODER_DECODERS
    return out[0, 1 if apart else ids.shape[1] :].tolist()


def answers(engine, requests, seconds=60):
    """The generated tokens of all requests, which run at once."""
    tickets = [engine.submit(request) for request in requests]
    return [ticket.result(seconds).ids for ticket in tickets]


def settled(engine):
    """The engine's statistics once it has let go of all requests that have ended."""
    engine.call(lambda host: None).result(60)
    return engine.statistics()
