"""`model.generate` with TextIteratorStreamer on a hosted model."""

import threading

import pytest
from transformers import TextIteratorStreamer

import deltatune
from support.neighbours import hosted, randomize_, works

NAME = "`generate` + `TextIteratorStreamer`"
PACKAGES = ("transformers",)
NOT_APPLICABLE = {
    "train": "generation only answers",
    "save": "see `AutoModel.from_pretrained`",
    "reload": "see `AutoModel.from_pretrained`",
}


def streamed(host, tokenizer, **options):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    ids = tokenizer("the film is", return_tensors="pt")
    given = {**ids, "max_new_tokens": 8, "do_sample": False, "streamer": streamer, **options}
    thread = threading.Thread(target=host.model.generate, kwargs=given)
    thread.start()
    text = "".join(streamer)
    thread.join()
    return text


def whole(host, tokenizer):
    ids = tokenizer("the film is", return_tensors="pt")
    out = host.model.generate(**ids, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :])


@works()
def test_attach(tokenizer):
    host = hosted()
    adapted = streamed(host, tokenizer)
    with host.disabled():
        bare = streamed(host, tokenizer)
    assert adapted != bare


@pytest.mark.slow
@works(but=("soft prompts", "generate through host.generate(...)"))
def test_serve(tokenizer, refusal):
    for method in ("LoRA(r=2)", "Prefix(length=3)", "Bottleneck(size=4)"):
        serves(hosted(method=method), tokenizer)
    with refusal():
        whole(hosted(method="Prompt(length=3)"), tokenizer)


def serves(host, tokenizer):
    assert streamed(host, tokenizer) == whole(host, tokenizer)
    host.attach("other", deltatune.LoRA(r=2))
    randomize_(host, "other", 5)
    host.use({"mine": 0.5, "other": 0.5})
    assert streamed(host, tokenizer) == whole(host, tokenizer)
