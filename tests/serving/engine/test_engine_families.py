"""The engine on every family of decoders and encoder-decoders: tokens equal those of `host.generate`."""

import pytest

import deltatune
from deltatune import DeltatuneError
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.testing.tiny_configs import FAMILIES, READS
from deltatune.testing.tiny_models import CONFIGS, ENCODER_DECODERS, ENCODERS
from support.language_models import randomize_
from support.serving_engine import answers, offline, random_requests, running, serving_host

JOIN = (
    *("gpt2", "llama", "mistral", "qwen2", "gpt_neox", "opt", "opt-350m", "gpt_neo", "gptj", "gpt_bigcode"),
    *("falcon-7b", "falcon-40b", "falcon-rw", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "cohere"),
    *("olmo", "olmo2", "stablelm", "starcoder2", "granite", "smollm3", "glm4", "nemotron", "persimmon"),
    *("mixtral", "qwen2_moe", "qwen3_moe"),
)
"""Families whose rows join and leave at any step."""
WHOLE = ("bloom", "mpt", "lfm2")
"""Decoders whose rows start together."""
APART = tuple(kind for kind in ("t5", "bart", *FAMILIES) if kind in ENCODER_DECODERS and kind not in READS)
METHODS = {"lora": "LoRA(r=4)", "bottleneck": "Bottleneck(size=4)"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*JOIN, *WHOLE, *APART])
def test_every_family_equals_itself_offline(kind):
    host = serving_host(kind, METHODS)
    adapters = [{}, {"lora": 1.0}, {"bottleneck": 0.5}]
    for name, method in (("prefix", "Prefix(length=3)"), ("prompt", "Prompt(length=2)")):
        try:
            host.attach(name, deltatune.parse(method), head=False)
        except DeltatuneError:  # a family without the attention that prefixes need
            continue
        randomize_(host, name)
        adapters.append({name: 1.0})
    host.use(None)
    requests = random_requests(10, adapters, longest=18, new=6, shortest=2)
    with running(host, EngineLimits(pass_tokens=16, cache_bytes=1 << 26)) as engine:
        assert engine.continuous == (kind in JOIN)
        got = answers(engine, requests)
    assert got == [offline(host, request) for request in requests]


def test_families_are_not_left_out():
    """A decoder that is added to the tiny families is served too, or named here."""
    known = {*JOIN, *WHOLE, *APART, *ENCODERS, *READS}
    cannot = {"codegen", "deepseek_v3"}  # no site of LoRA's default names
    generating = {kind for kind in CONFIGS if kind not in ENCODERS}
    assert not generating - known - cannot
