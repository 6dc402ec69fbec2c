# %% [markdown]
# # Many adapters in one batch
#
# Four classifiers of four methods on one frozen model. Each row of a batch has its own adapter, or a weighted mix,
# and all rows share one pass of the model. A store keeps the adapters; a bank holds many of them at once.
#
#     pip install "deltatune[demo]"

# %% tags=["parameters"]
ROWS = 160
STEPS = 50
TURNS = 15

# %%
import random
import statistics
import time
from pathlib import Path

import torch

import deltatune
from deltatune.data import read
from deltatune.tasks import Classify
from deltatune.training import AdapterTraining, Settings, logits, train_together

model, tokenizer = deltatune.load_backbone("builtin")
host = deltatune.Host(model)

# %% [markdown]
# ## Four tasks, four methods
#
# Each task tells two parts of Python's library apart, by a sentence of its documentation.

# %%
data = read("python-docs")
methods = {
    "dates": (deltatune.LoRA(r=8), ("dates and times", "mathematics")),
    "network": (deltatune.Bottleneck(size=16), ("concurrency", "networking")),
    "files": (deltatune.Prefix(length=8), ("data formats", "files and processes")),
    "language": (deltatune.IA3(), ("language tools", "testing and debugging")),
}
tasks, tests, trainings = {}, {}, []
for name, (method, labels) in methods.items():
    tasks[name] = Classify(labels=labels, max_length=64)
    rows = random.Random(0).sample([row for row in data.train if row["label"] in labels], ROWS)
    tests[name] = [row for row in data.test if row["label"] in labels]
    host.attach(name, method, head=tasks[name].make_head(model.config))
    settings = Settings(max_steps=STEPS, batch_size=16)
    trainings.append(AdapterTraining(name, tasks[name], rows, settings=settings))
host

# %% [markdown]
# They train together: at each step the next batch of every task is put into one batch, and the model runs once.

# %%
outcomes = train_together(host, trainings, tokenizer)
for (name, (method, _)), outcome in zip(methods.items(), outcomes, strict=True):
    answers = tasks[name].decode(deltatune.predict(host, name, tasks[name], tests[name], tokenizer))
    right = [answer["label"] == row["label"] for answer, row in zip(answers, tests[name], strict=True)]
    print(f"{name:9} {method!r:22} loss {outcome.history[0][1]:.2f} -> {outcome.history[-1][1]:.2f}", end="  ")
    print(f"accuracy {sum(right) / len(right):.3f} of {len(right)} test rows")

# %% [markdown]
# ## Row by row
#
# `host.use` with a list gives each row of the next batches its adapter. A row computes what it computes alone.

# %%
names = list(methods)
routes = [names[i % 4] for i in range(32)]
batch = tokenizer(
    [tests[name][i // 4]["text"] for i, name in enumerate(routes)],
    padding=True, truncation=True, max_length=64, return_tensors="pt",
)  # fmt: skip


def answer(route):
    with host.using(route), torch.inference_mode():
        return logits(host, dict(batch))


mixed = answer(routes)
alone = {name: answer(name) for name in names}
difference = max((mixed[i] - alone[name][i]).abs().max().item() for i, name in enumerate(routes))
print("one batch, four methods: largest difference from each row alone below 1e-5:", difference < 1e-5)
for i in range(4):
    label = tasks[routes[i]].labels[mixed[i].argmax()]
    print(f"{routes[i]:9} {label:22} {tests[routes[i]][0]['text'][:60]}")

# %% [markdown]
# ## Weights
#
# A route may mix adapters of any methods: weights scale the changes of each. Here a sentence moves, in the model's
# last states, from one adapter to another.

# %%
states = {}
for weight in (1.0, 0.5, 0.0):
    with host.using({"dates": weight, "network": 1.0 - weight}), torch.inference_mode():
        states[weight] = model(**batch).last_hidden_state[0, 0]
for weight, state in states.items():
    cosine = torch.nn.functional.cosine_similarity(state, states[1.0], dim=0)
    print(f"{weight:.1f} dates + {1 - weight:.1f} network: cosine with dates alone {cosine:.2f}")

# %% [markdown]
# ## A store and a bank
#
# A store keeps adapters by name, each content once. A bank holds them as stacked tensors: rows of different adapters
# share batched products. Both check the base.

# %%
store = deltatune.AdapterStore("store")
for name in names:
    host.save(name, Path("runs") / name)
    store.add(Path("runs") / name, replace=True)
for entry in store.list():
    print(f"{entry.name:9} {entry.method:22} {entry.bytes / 1000:6.1f} kB")

served = deltatune.Host(deltatune.load_backbone("builtin")[0])
bank = served.bank(slots=64)
for name in names:
    store.read(name).put_into(bank, name)
with served.using(routes), torch.inference_mode():
    from_bank = logits(served, dict(batch))
difference = max((banked - row).abs().max().item() for banked, row in zip(from_bank, mixed, strict=True))
print("from the bank: largest difference below 1e-4:", difference < 1e-4)

# %% [markdown]
# ## What it costs
#
# A batch of 32 rows, CPU time relative to the bare model, medians of alternating turns on the machine that made this
# page; yours differs. First the four methods with eight rows each, then 32 LoRAs with one row each: in a pass for each
# row, in one pass with all of them attached, and in one pass with a bank.

# %% tags=["measured"]
for i in range(32):
    store.read("dates").put_into(bank, f"dates{i}")
    host.load(store.folder("dates"), name=f"dates{i}")
many = [f"dates{i}" for i in range(32)]
single = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(32)]


def together(host, route):
    with host.using(route):
        host.model(**batch)


def one_by_one():
    for name, row in zip(many, single, strict=True):
        with host.using(name):
            model(**row)


cases = {
    "bare model": lambda: together(host, None),
    "4 methods, attached": lambda: together(host, routes),
    "4 methods, bank": lambda: together(served, routes),
    "32 LoRAs, a pass each": one_by_one,
    "32 LoRAs, attached": lambda: together(host, many),
    "32 LoRAs, bank": lambda: together(served, many),
}
seconds = {case: [] for case in cases}
with torch.inference_mode():
    for _ in range(TURNS + 1):
        for case, run in cases.items():
            start = time.process_time()
            run()
            seconds[case].append(time.process_time() - start)
bare = statistics.median(seconds["bare model"][1:])  # the first turn is a warm-up
for case, times in seconds.items():
    print(f"{case:22} {statistics.median(times[1:]) / bare:5.2f} x")

# %% [markdown]
# - [Composing](../../docs/composing.md): routes, weights, unions, arithmetic
# - [Banks](../../docs/banks.md) and [adapter stores](../../docs/adapter_store.md)
# - [Serving](../../docs/serving.md): the same behind HTTP, `deltatune serve --store store`
