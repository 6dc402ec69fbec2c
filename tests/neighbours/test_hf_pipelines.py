"""transformers' `pipeline()` around a hosted model."""

import pytest
from transformers import AutoModelForCausalLM, pipeline

import deltatune
from support import models
from support.neighbours import hosted, randomize_, works

NAME = "transformers `pipeline()`"
PACKAGES = ("transformers",)
NOT_APPLICABLE = {"train": "pipelines only answer"}


def hosted_pipeline(base, tokenizer, method="LoRA(r=2)"):
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.attach("mine", deltatune.parse(method))
    randomize_(host)
    return host, pipeline("text-generation", model=host.model, tokenizer=tokenizer, device="cpu")


def answer(pipe):
    (out,) = pipe("the film is", max_new_tokens=6, do_sample=False, return_tensors=True)
    return out["generated_token_ids"]


@works()
def test_attach(base, tokenizer):
    host, pipe = hosted_pipeline(base, tokenizer)
    adapted = answer(pipe)
    with host.disabled():
        bare = answer(pipe)
    assert adapted != bare
    host.attach("other", deltatune.LoRA(r=2))
    randomize_(host, "other", 5)
    host.use("other")
    assert answer(pipe) not in (adapted, bare)


@pytest.mark.slow
@works()
def test_save(base, tokenizer, tmp_path):
    _, pipe = hosted_pipeline(base, tokenizer)
    pipe.save_pretrained(str(tmp_path / "out"))
    assert (tmp_path / "out" / "mine" / "adapter.safetensors").is_file()
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.slow
@works(but=("what PEFT cannot hold", "Unrecognized model in"))
def test_reload(base, tokenizer, refusal, tmp_path):
    """A LoRA is loaded through PEFT; what PEFT has no form for is refused, and `host.load` loads it."""
    _, pipe = hosted_pipeline(base, tokenizer)
    pipe.save_pretrained(str(tmp_path / "lora"))
    again = pipeline("text-generation", model=str(tmp_path / "lora"), tokenizer=tokenizer, device="cpu")
    assert answer(again) == answer(pipe)
    _, pipe = hosted_pipeline(base, tokenizer, "Bottleneck(size=4)")
    pipe.save_pretrained(str(tmp_path / "bottleneck"))
    with refusal():
        pipeline("text-generation", model=str(tmp_path / "bottleneck"), tokenizer=tokenizer, device="cpu")
    other = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    other.load(tmp_path / "bottleneck")
    assert answer(pipeline("text-generation", model=other.model, tokenizer=tokenizer, device="cpu")) == answer(pipe)


@pytest.mark.slow
@works(but=("soft prompts", "generate through host.generate(...)"))
def test_serve(base, tokenizer, refusal):
    for method in ("LoRA(r=2)", "Prefix(length=3)", "Bottleneck(size=4)"):
        serves(method, base, tokenizer)
    _, pipe = hosted_pipeline(base, tokenizer, "Prompt(length=3)")
    with refusal():
        answer(pipe)


def serves(method, base, tokenizer):
    host, pipe = hosted_pipeline(base, tokenizer, method)
    ids = tokenizer("the film is", return_tensors="pt")
    wanted = host.model.generate(**ids, max_new_tokens=6, do_sample=False)[0]
    assert list(answer(pipe)) == wanted.tolist()
    classifier = hosted("bert", "classify", method)
    classify = pipeline("text-classification", model=classifier.model, tokenizer=models.tiny_tokenizer(), device="cpu")
    adapted = classify("a great film")
    with classifier.disabled():
        assert classify("a great film") != adapted
