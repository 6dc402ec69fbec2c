# %% [markdown]
# # Comparing methods
#
# Which method is best for these data, this model and this budget? A comparison searches a learning rate for each
# method on validation rows, trains several seeds, scores the test rows once, and says which differences are more than
# luck. This page took less than four minutes on two busy cores.
#
#     pip install "deltatune[demo]"

# %% tags=["parameters"]
DATA = "python-docs"  # or your CSV
ROWS = 200
EPOCHS = 3

# %%
import deltatune
from deltatune.data import read
from deltatune.training import Settings

data = read(DATA, limit=ROWS)
print({split: len(rows) for split, rows in data.splits().items()}, len(data.labels), "classes")

# %% [markdown]
# ## The budget
#
# Methods are comparable at equal numbers of trained parameters. With `budget="0.5%"` of the model's parameters each
# method gets the largest size that fits: a rank, a width, a length. The head, the same for all, is not counted.
# `Probe` is the head alone: an adapter that is not told apart from it has not shown that it is worth its parameters.

# %%
model, tokenizer = deltatune.load_backbone("builtin")
sites = deltatune.find_sites(model)
for text in ("LoRA()", "Bottleneck()", "Prefix()"):
    method = deltatune.fit_budget(deltatune.parse(text), sites, "0.5%")
    print(f"{method!r:24} {method.count(sites):8,} trained parameters")

# %% [markdown]
# ## The comparison
#
# Learning rates are searched by successive halving: three for each method, and the better ones go on. Then each
# method runs with three seeds. Without `seeds=` it starts with two, and methods that are not told apart get more. All
# of it is kept in `out`; an interrupted comparison goes on there. `minutes=10` would plan itself for ten minutes
# instead.

# %%
result = deltatune.compare(
    data,
    methods=["LoRA()", "Bottleneck()", "BitFit()", "Probe()"],
    budget="0.5%",
    settings=Settings(epochs=EPOCHS, batch_size=16),
    seeds=3,
    max_length=64,
    workers=1,
    out="runs/comparison",
)
result

# %% [markdown]
# ## Reading the figure
#
# Each point is the mean test score of a method, with its 95 % interval over seeds and test rows. The staircase is the
# Pareto front: no method with fewer parameters scores better. Hollow markers are references without a size to fit.

# %%
result.figure()

# %% [markdown]
# ## What the verdict means
#
# Two methods may have overlapping intervals and still be told apart, because they answer the same test rows: the
# difference is judged row by row (a paired bootstrap), for all pairs at once. `better` and `worse` are sure at 95 %,
# `equal` means surely within the margin of 0.02, `undecided` means that these seeds and rows cannot tell. Undecided
# is not equal.
#
# In the run of this page, with 200 training rows, one adapter is told apart from the head alone, barely; the others
# are not, and the adapters are not told apart from each other. That is an answer, too: with so few rows the choice
# among them hardly matters. With more rows, ask again.

# %%
for pair in result.summary["pairs"]:
    low, high = pair["ci"]
    print(f"{pair['first']:22} {pair['verdict']:9} {pair['second']:22}", end=" ")
    print(f"{pair['difference']:+.3f} ({low:+.3f} to {high:+.3f})")

# %% [markdown]
# The seeds of one method differ too. A comparison of single runs would have compared these:

# %%
for row in result.summary["methods"]:
    scores = "  ".join(f"{score:.3f}" for score in row["seed_scores"])
    print(f"{row['method']:22} {scores}   learning rate {row['learning_rate']:.2g}")

# %% [markdown]
# ## The recommended adapter
#
# Of the methods that are not told apart from the best, the recommendation takes the one that trains least. Its
# adapter is a folder, like any other. `result.report` is the whole page for a browser: curves, costs, the search,
# sample predictions.

# %%
print(result.best.method)
print(result.best.adapter)
print(result.report)

# %% [markdown]
# - [How a comparison works, twenty methods compared](../../docs/comparison.md)
# - [How often a verdict is wrong](../../docs/statistics.md)
# - [Many adapters in one batch](many_adapters.ipynb)
