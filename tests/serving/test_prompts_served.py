"""Prompts for texts that are served: answers behind their demonstrations are those of `deltatune predict`."""

import deltatune
from deltatune.prompting.prompting_methods import ICL
from deltatune.tasks import task_from_json
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.training.inference.prediction import predict
from support import models
from support.served import Served, chat_tokenizer, write_adapters

SHARED = GenerateInContext(
    max_length=80, new_tokens=6, prompt="film: {input} is", stop="\n\n",
    demonstrations=(("film: old is", "good"), ("film: bad is", "not great")),
)  # fmt: skip
OWN = GenerateInContext(max_length=80, new_tokens=6, pool=(("a\n", "good", "a"), ("b\n", "bad", "b")), shots=1)
TEXTS = ["the film is good", "it was very bad and not great"]


def llama():
    return models.tiny("llama", "lm", dropout=False)


def test_inputs_are_answered_behind_the_demonstrations(tmp_path):
    write_adapters(tmp_path, {"shown": (repr(ICL(shots=2)), SHARED), "nearest": ("LoRA(r=2)", OWN)}, llama())
    host = deltatune.Host(llama())
    task = task_from_json(host.load(tmp_path / "shown", name="shown").extra["task"])
    assert task == SHARED
    rows = [{"input": text} for text in TEXTS]
    expected = predict(host, "shown", task, rows, chat_tokenizer(), precision="float32")
    with Served(tmp_path, model=llama()).running() as served:
        answer = served.post("/v1/completions", model="shown", input=TEXTS)
        assert [each["text"] for each in answer["choices"]] == [each["text"] for each in expected]
        prompts = [task.prompt_of(row) for row in rows]
        assert answer["usage"]["prompt_tokens"] > sum(len(prompt.split()) for prompt in prompts)
        chat = [{"role": "user", "content": TEXTS[0]}]
        refused = served.refused("/v1/chat/completions", model="shown", messages=chat)
        assert "answers behind a prompt of its own; POST /v1/completions with input" in refused["message"]
        refused = served.refused("/v1/completions", model="shown", input=TEXTS[0], n=2)
        assert "leave out n" in refused["message"]
        refused = served.refused("/v1/completions", model="nearest", input=TEXTS[0])
        assert "chooses demonstrations for each input" in refused["message"]
