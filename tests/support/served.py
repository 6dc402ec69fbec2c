"""A server of a tiny Llama and adapters of every task, in a thread; offline answers of the same adapters."""

import io
import json
import threading
from contextlib import contextmanager

import httpx
import openai

import deltatune
from deltatune.serving.engine.engine import Engine
from deltatune.serving.residency import Residency
from deltatune.serving.served_base import served_base
from deltatune.serving.server.application import create_app
from deltatune.serving.server.guard.guards import Guarding
from deltatune.serving.server.guard.request_log import RequestLog
from deltatune.serving.server.server_process import DrainingServer, listen
from deltatune.serving.service import Service
from deltatune.store.adapter_store import AdapterStore
from deltatune.tasks import Classify, ExtractiveQA, Generate, Mixture, MultiLabel, Tag
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.row_inputs import row_inputs
from deltatune.training.inference.prediction import predict
from support import models
from support.language_models import generation_tokenizer, randomize_

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
SENTIMENT = Classify(labels=("bad", "good"), max_length=48)
NAMES = Tag(tags=("O", "B-PER", "I-PER", "B-LOC"), max_length=48)
TASKS = {
    "sst2": ("LoRA(r=2)", SENTIMENT),
    "sst2-ia3": ("IA3()", SENTIMENT),
    "pairs": ("LoRA(r=2)", Classify(labels=("no", "yes"), text=("premise", "hypothesis"), max_length=48)),
    "stars": ("Prompt(length=3)", Classify(max_length=48, center=3.0, scale=1.5)),
    "topics": ("LoRA(r=2)", MultiLabel(labels=("film", "plot", "actor"), max_length=48)),
    "ner": ("Prefix(length=4)", NAMES),
    "squad": ("LoRA(r=2)", ExtractiveQA(max_length=40, stride=8, longest=5)),
    "words": ("LoRA(r=2)", LabelWords(labels=("bad", "good"), template="{text} it is {mask}", max_length=48)),
    "mixed": ("LoRA(r=2)", Mixture({"sentiment": SENTIMENT, "names": NAMES})),
    "plain": ("LoRA(r=2)", Generate(max_length=64, new_tokens=8)),
    "plain-ia3": ("IA3()", Generate(max_length=64, new_tokens=8)),
    "colon": (
        "Bottleneck(size=4)",
        Generate(text=("ask", "more"), prompt="{ask} : {more} =", max_length=64, new_tokens=8),
    ),
    "beams": ("LoRA(r=2)", Generate(max_length=64, new_tokens=6, beams=3)),
    "chatty": ("LoRA(r=2)", Generate(text=("messages",), label="messages", prompt="chat", max_length=90, new_tokens=8)),
    "untold": ("LoRA(r=2)", None),
}
"""Method and task of each adapter of the store."""


def chat_tokenizer():
    tokenizer = generation_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def tiny_llama():
    return models.tiny("llama", "lm", dropout=False)


def write_adapters(folder, tasks=TASKS, model=None):
    """Folders of adapters with random values."""
    host = deltatune.Host(model or tiny_llama())
    for seed, (name, (method, task)) in enumerate(tasks.items()):
        head = None if task is None else task.make_head(host.model.config, seed)
        host.attach("a", deltatune.parse(method), head=head or False, seed=seed)
        randomize_(host)
        host.save("a", folder / name, extra={} if task is None else {"task": task.to_json(), "model": "tiny"})
        host.detach("a")
    return folder


class Offline:
    """What `deltatune predict` answers, in float32."""

    def __init__(self, folder):
        self.folder, self.host, self.tokenizer = folder, deltatune.Host(tiny_llama()), chat_tokenizer()

    def predict(self, name, rows, weight=1.0, part=None):
        task = TASKS[name][1]
        task = task.part(part) if part else task
        with self.attached(name):
            shaped = row_inputs(task, rows)
            whole = TASKS[name][1]
            answers = predict(
                self.host, name, whole, shaped, self.tokenizer, precision="float32", part=part, weight=weight
            )
        return task.decode(answers)

    @contextmanager
    def attached(self, *names):
        for name in names:
            if name not in self.host.adapters:
                self.host.load(self.folder / name, name=name)
        try:
            yield self.host
        finally:
            for name in names:
                self.host.detach(name)

    def greedy(self, prompt, route, tokens, stops=()):
        """Token ids that follow a text, each from a pass over all tokens before it."""
        ids = self.tokenizer(prompt)["input_ids"][:-1]
        return self.greedy_ids(ids, route, tokens, stops)

    def greedy_ids(self, ids, route, tokens, stops=()):
        import torch

        ids, start = list(ids), len(ids)
        ends = {self.tokenizer.eos_token_id, *stops}
        with self.attached(*(route or ())), self.host.using(route or None, training=False), torch.inference_mode():
            for _ in range(tokens):
                token = int(self.host.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                if token in ends:
                    break
                ids.append(token)
        return ids[start:]

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


class Served:
    """A running server, and what its log says."""

    def __init__(self, folder, guarding=None, limits=None, adapters=32, add=True, model=None):
        self.folder, self.lines = folder, io.StringIO()
        self.store = AdapterStore(folder / "store")
        if add:
            self.store.add_all(folder)
        self.host, tokenizer = deltatune.Host(model or tiny_llama()), chat_tokenizer()
        self.residency = Residency(self.host, self.store, adapters=adapters)
        self.engine = Engine(self.host, tokenizer, self.residency, limits, precision="float32")
        self.service = Service(self.engine, self.residency, self.store, tokenizer, served_base(self.host, "org/tiny"))
        self.guard = create_app(self.service, guarding or Guarding(log=RequestLog(self.lines)))

    @contextmanager
    def running(self):
        ready, sock = threading.Event(), listen("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = DrainingServer(self.guard, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            assert ready.wait(10)
            with self.client() as self.http:
                self.openai = openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=30)
                yield self
        finally:
            server.should_exit = True
            thread.join(10)
            self.service.close()
            self.engine.close()
            assert not thread.is_alive()

    def client(self):
        return httpx.Client(base_url=self.address, timeout=30, trust_env=False)

    def post(self, path, **body):
        """The JSON of an answer that must be 200."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path, status=400, **body):
        """The error of an answer that must have this status."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]

    def events(self):
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]
