"""Servers of other families: an encoder-decoder that writes, an encoder that does not."""

import shutil

import pytest

import deltatune
from deltatune.serving.open_service import quantization_of
from deltatune.serving.served_base import loads_for, public_name
from deltatune.store.adapter_store import AdapterStore
from deltatune.tasks import Classify, Generate, Tag, task_from_json
from deltatune.training.inference.prediction import predict
from support import models
from support.served import Served, chat_tokenizer, write_adapters

LABELS = Classify(labels=("bad", "good"), max_length=48)
WRITE = Generate(max_length=48, new_tokens=6)
TEXTS = ["the film is good", "it was very bad and not great"]


def offline(folder, model, name, rows):
    host = deltatune.Host(model)
    adapter = host.load(folder / name, name=name)
    task = task_from_json(adapter.extra["task"])
    return task.decode(predict(host, name, task, rows, chat_tokenizer(), precision="float32"))


@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_an_encoder_decoder(tmp_path, kind):
    def model():
        return models.tiny(kind, "lm", dropout=False)

    write_adapters(tmp_path, {"writer": ("LoRA(r=2)", WRITE), "rater": ("LoRA(r=2)", LABELS)}, model())
    with Served(tmp_path, model=model()).running() as served:
        texts = [each["text"] for each in served.post("/v1/completions", model="writer", input=TEXTS)["choices"]]
        rows = [{"input": text} for text in TEXTS]
        assert texts == [each["text"] for each in offline(tmp_path, model(), "writer", rows)]
        answer = served.post("/v1/completions", model="writer", prompt=TEXTS[0], max_tokens=6, temperature=0)
        assert answer["choices"][0]["text"].strip() == texts[0]  # the form "plain" of one text is the text
        labels = served.post("/v1/classify", model="rater", input=TEXTS)["data"]
        expected = offline(tmp_path, model(), "rater", [{"text": text} for text in TEXTS])
        assert [each["score"] for each in labels] == pytest.approx([each["score"] for each in expected], rel=1e-4)
        stream = served.openai.completions.create(
            model="writer", prompt=TEXTS[0], max_tokens=6, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == answer["choices"][0]["text"]


@pytest.mark.parametrize("head", ["lm", pytest.param(None, marks=pytest.mark.slow)])
def test_an_encoder_answers_but_does_not_write(tmp_path, head):
    def model():
        return models.tiny("bert", head, dropout=False)

    tags = Tag(tags=("O", "B-X", "I-X"), max_length=48)
    write_adapters(tmp_path, {"rater": ("LoRA(r=2)", LABELS), "tagger": ("IA3()", tags)}, model())
    with Served(tmp_path, model=model()).running() as served:
        labels = served.post("/v1/classify", model="rater", input=TEXTS)["data"]
        expected = offline(tmp_path, model(), "rater", [{"text": text} for text in TEXTS])
        assert [each["score"] for each in labels] == pytest.approx([each["score"] for each in expected], rel=1e-4)
        assert served.post("/v1/tag", model="tagger", input=TEXTS[0])["data"][0]["tags"]
        assert len(served.openai.embeddings.create(model="base", input=TEXTS).data) == 2
        assert served.http.get("/v1/models/base").json()["generates"] is False
        error = served.refused("/v1/completions", model="base", prompt="a")
        assert "is an encoder and writes no text; POST /v1/embeddings" in error["message"]
        assert served.refused("/v1/chat/completions", model="base", messages=[{"role": "user", "content": "a"}])


def test_adapters_of_a_bare_transformer_on_its_language_model(tmp_path):
    """A classifier is trained on the transformer alone; the server has its language model for the others."""
    bare = models.tiny("llama", "lm", dropout=False).model
    write_adapters(tmp_path, {"rater": ("LoRA(r=2)", LABELS)}, bare)
    expected = offline(tmp_path, models.tiny("llama", "lm", dropout=False).model, "rater", [{"text": TEXTS[0]}])
    with Served(tmp_path).running() as served:
        assert "rater" in [model.id for model in served.openai.models.list()]
        answer = served.post("/v1/classify", model="rater", input=TEXTS[0])["data"][0]
        assert answer["score"] == pytest.approx(expected[0]["score"], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "head", "loads"),
    [("llama", "lm", "text"), ("t5", "lm", "text"), ("bert", "lm", "mask"), ("bert", None, "row")],
)
def test_the_model_that_is_loaded(tmp_path, kind, head, loads):
    models.tiny(kind, head).save_pretrained(tmp_path / "model")
    assert loads_for(str(tmp_path / "model")) == loads
    assert public_name(str(tmp_path / "model")) == "model"
    assert public_name("org/name") == "org/name"


def test_weights_of_soft_prompts_are_refused(tmp_path):
    write_adapters(tmp_path, {"soft": ("Prompt(length=3)", WRITE)})
    with Served(tmp_path).running() as served:
        body = {"prompt": "good", "temperature": 0, "max_tokens": 4}
        assert served.post("/v1/completions", model="soft", **body)["choices"]
        error = served.refused("/v1/completions", model="soft:0.5", **body)
        assert "3 virtual tokens" in error["message"]
        base = served.post("/v1/completions", model="base", **body)
        assert served.post("/v1/completions", model="soft:0", **body)["choices"] == base["choices"]


def test_an_adapter_of_peft(tmp_path):
    """It does not say what it is for: it writes and embeds."""
    write_adapters(tmp_path / "ours", {"lora": ("LoRA(r=2)", None)})
    (tmp_path / "peft").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "ours" / "lora" / name, tmp_path / "peft" / name)
    with Served(tmp_path, add=False).running() as served:
        served.store.add(tmp_path / "ours" / "lora", "lora")
        served.store.add(tmp_path / "peft", "peft")
        body = {"prompt": TEXTS[0], "temperature": 0, "max_tokens": 6}
        ours, theirs = (served.post("/v1/completions", model=name, **body)["choices"] for name in ("lora", "peft"))
        assert ours == theirs
        assert theirs != served.post("/v1/completions", model="base", **body)["choices"]
        assert (
            "does not say what it was trained for" in served.refused("/v1/classify", model="peft", input="a")["message"]
        )


def test_the_base_is_stored_as_the_adapters_say(tmp_path):
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.attach("a", deltatune.parse("LoRA(r=2)"), head=False)
    for name, extra in (("coded", {"quantize": "nf4"}), ("plain", {})):
        host.save("a", tmp_path / name, extra={"task": WRITE.to_json(), "model": "tiny", **extra})
    store = AdapterStore(tmp_path / "store")
    store.add(tmp_path / "coded")
    assert quantization_of(store).startswith("NF4") or quantization_of(store) == "nf4"
    store.add(tmp_path / "plain")
    assert quantization_of(store) is None
