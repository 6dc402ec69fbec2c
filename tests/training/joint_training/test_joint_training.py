"""Adapters trained together equal those trained apart; one that fails or ends leaves the others alone."""

import itertools
import math

import pytest
import torch
from torch import nn

from deltatune import DeltatuneError, Host, parse
from deltatune.core.registry import registry
from deltatune.tasks import Classify, ExtractiveQA, Generate, LanguageModel, Mixture, MultiLabel, Tag
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training import AdapterTraining, Outcome, Settings, is_faster, train, train_together
from deltatune.training.joint_training.joint_batches import _Size, cut_by_width
from deltatune.training.reporting import read
from support import label_words, models
from support.language_models import generation_tokenizer
from support.language_models import make_rows as generation_rows
from support.runs import TASK, assert_same, make_rows, tensors


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


KINDS = ["bert", slow("gpt2"), slow("llama"), slow("t5")]
METHODS = [
    "LoRA(r=2)",
    "Bottleneck(size=4)",
    "Prefix(length=3)",
    "Prompt(length=4)",
    "BitFit(missing='add')",
    "IA3()",
    "LoRA(r=3, alpha=9) + Prefix(length=2)",
    "LoRA(r=2)",
]
SETTINGS = [
    Settings(max_steps=5, batch_size=4, learning_rate=1e-2, precision="float32", seed=1),
    Settings(max_steps=3, batch_size=7, learning_rate=3e-3, precision="float32", warmup=0.0, weight_decay=0.1),
    Settings(epochs=1.5, batch_size=9, learning_rate=1e-2, precision="float32", schedule="cosine", accumulation=2),
    Settings(max_steps=6, batch_size=3, learning_rate=5e-3, precision="float32", max_grad_norm=0.05, seed=2),
]
NEAR = {"rtol": 1e-3, "atol": 2e-4}
"""Adam divides by gradients: where one is nearly 0, its rounding is a small part of a step."""


def hosted(methods, kind="bert", task=TASK, model=None, dropout=0.0):
    """A host with an adapter for each method: a0, a1, ..., with a head of its own."""
    host = Host(model or models.tiny(kind, dropout=dropout > 0))
    for i, method in enumerate(methods):
        head = task.make_head(host.model.config, seed=i, dropout=dropout)
        host.attach(f"a{i}", parse(method), seed=i, head=False if head is None else head)
    return host


def asked(count, **fields):
    """A training for each adapter, with rows, rates, orders, batches and lengths of its own."""
    return [
        AdapterTraining(
            f"a{i}",
            TASK,
            make_rows(20 + 3 * i, seed=i),
            make_rows(8, seed=50 + i),
            SETTINGS[i % len(SETTINGS)],
            **fields,
        )
        for i in range(count)
    ]


def apart(host, trainings, tokenizer):
    return [
        train(host, t.name, t.task, t.rows_train, t.rows_validation, tokenizer, t.settings, t.out, until=t.until)
        for t in trainings
    ]


def check_equal(host, outcomes, other, others, near=NEAR, without_gradient=()):
    for name, outcome, wanted in zip(host.adapters, outcomes, others, strict=True):
        assert isinstance(outcome, Outcome), outcome
        assert [step for step, _ in outcome.history] == [step for step, _ in wanted.history]
        losses, wanted_losses = (torch.tensor([loss for _, loss in o.history]) for o in (outcome, wanted))
        torch.testing.assert_close(losses, wanted_losses, rtol=1e-3, atol=1e-4, msg=name)
        for (step, scores), (wanted_step, wanted_scores) in zip(outcome.evaluations, wanted.evaluations, strict=True):
            assert step == wanted_step
            assert scores == pytest.approx(wanted_scores, abs=1e-3)
        values, wanted_values = (
            {key: value for key, value in tensors(each, name).items() if (name, key) not in without_gradient}
            for each in (host, other)
        )
        assert_same(values, wanted_values, **near)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_trained_together_are_those_trained_apart(kind):
    tokenizer = models.tiny_tokenizer()
    host, other, start = (hosted(METHODS, kind) for _ in range(3))
    outcomes = train_together(host, asked(len(METHODS)), tokenizer)
    check_equal(host, outcomes, other, apart(other, asked(len(METHODS)), tokenizer))
    for name in host.adapters:  # and they have learned more than the tolerance
        before, after = tensors(start, name), tensors(host, name)
        assert max(float((after[key] - before[key]).abs().max()) for key in after if key in before) > 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_every_method_that_mixes_trains_beside_all_others(kind):
    tokenizer = models.tiny_tokenizer()

    def made():
        host = hosted([], kind)
        for i, maker in enumerate(registry().values()):
            method = with_token_ids(parse(repr(maker())), tokenizer, TASK)
            if draws(repr(method)) or (kind in ("llama", "t5") and type(method).__name__ == "BitFit"):  # no biases
                continue
            host.attach(f"a{i}", method, seed=i, head=TASK.make_head(host.model.config, seed=i, dropout=0.0))
            if not host.adapters[f"a{i}"].mixes or any(
                delta.dropout for _, delta in host.adapters[f"a{i}"].named_deltas()
            ):
                host.detach(f"a{i}")
        return host

    host, other = made(), made()
    settings = Settings(max_steps=3, batch_size=4, learning_rate=1e-3, precision="float32")
    trainings = [
        AdapterTraining(name, TASK, make_rows(12, seed=i), None, settings) for i, name in enumerate(host.adapters)
    ]
    assert len(trainings) > 20
    check_equal(host, train_together(host, trainings, tokenizer), other, apart(other, trainings, tokenizer))


def draws(method):
    """Whether it leaves out other layers at each step, drawn as dropout is."""
    return method.startswith("RobustAdapterDrop") or "robust=True" in method


def test_a_step_of_all_is_one_pass_of_the_base():
    host, passes = hosted(["LoRA(r=2)"] * 3), []
    host.model.register_forward_hook(lambda module, args, output: passes.append(len(output[0])))
    settings = [Settings(max_steps=n, batch_size=n, precision="float32") for n in (2, 3, 4)]
    rows = [{"text": "the film is good", "label": "good"}, {"text": "the plot is bad", "label": "bad"}] * 8
    trainings = [AdapterTraining(f"a{i}", TASK, rows, None, each) for i, each in enumerate(settings)]
    train_together(host, trainings, models.tiny_tokenizer())
    assert passes == [9, 9, 7, 4]  # rows of a step: one adapter after the other has ended
    passes.clear()
    host.detach("a2")
    train_together(host, trainings[:2], models.tiny_tokenizer(), most_rows=3)
    assert sorted(passes[:2]) == [2, 3]  # more than most_rows together


WORDS = ("film", "plot")
SPANS = [
    {"question": "what is good", "context": f"the {word} is good", "answers": [{"text": word, "start": 4}]}
    for word in WORDS
]
TASKS = {
    "classes": (TASK, make_rows(12)),
    "number": (Classify(labels=(), max_length=32), [{"text": w, "label": float(w == "film")} for w in WORDS] * 5),
    "many": (MultiLabel(labels=WORDS, max_length=32), [{"text": f"the {w}", "label": [w]} for w in WORDS] * 5),
    "tags": (
        Tag(tags=("O", "B-X"), text=("tokens",), label="tags", max_length=32),
        [{"tokens": ["the", w, "is"][:n], "tags": ["O", "B-X", "O"][:n]} for w in WORDS for n in (2, 3)] * 3,
    ),
    "span": (ExtractiveQA(max_length=48, stride=8), SPANS * 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_with_heads_of_their_own_share_a_pass(kind):
    tokenizer = models.tiny_tokenizer()

    def made():
        host = Host(models.tiny(kind, dropout=False))
        for i, (task, _) in enumerate(TASKS.values()):
            method = ("LoRA(r=2)", "Prompt(length=2)", "Prefix(length=2)")[i % 3]
            host.attach(f"a{i}", parse(method), seed=i, head=task.make_head(host.model.config, dropout=0.0))
        return host

    trainings = [
        AdapterTraining(
            f"a{i}",
            task,
            rows,
            rows[:4],
            Settings(max_steps=3, batch_size=4, learning_rate=1e-2, precision="float32", seed=i),
        )
        for i, (task, rows) in enumerate(TASKS.values())
    ]
    host, other = made(), made()
    check_equal(host, train_together(host, trainings, tokenizer), other, apart(other, trainings, tokenizer))


@pytest.mark.parametrize(
    ("kind", "side"), [slow("gpt2", "right"), ("gpt2", "left"), slow("llama", "left"), ("t5", "right")]
)
def test_language_models_share_a_pass(kind, side):
    tokenizer = generation_tokenizer(side)
    answer = Generate(text=("input",), label="output", prompt="plain", new_tokens=4, max_length=64)
    text = LanguageModel(max_length=32)
    given = [(answer, generation_rows(9)), (answer, generation_rows(14, seed=3, longest=14))]
    if kind != "t5":
        given.append((text, [{"text": row["input"]} for row in generation_rows(10, seed=5)]))
    methods = ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)"][: len(given)]
    host, other = (hosted(methods, model=models.tiny(kind, "lm", dropout=False), task=answer) for _ in range(2))
    trainings = [
        AdapterTraining(
            f"a{i}",
            task,
            rows,
            None,
            Settings(max_steps=4, batch_size=3 + i, learning_rate=1e-2, precision="float32", seed=i),
        )
        for i, (task, rows) in enumerate(given)
    ]
    check_equal(host, train_together(host, trainings, tokenizer), other, apart(other, trainings, tokenizer))


@pytest.mark.parametrize("kind", ["bert", "t5", *(slow(k) for k in label_words.KINDS if k not in ("bert", "t5"))])
def test_label_words_share_a_pass(kind):
    methods = ["LoRA(r=2)", "Prefix(length=2)", "LoRA(r=4)"]
    tasks = [label_words.task(), label_words.task("It was {mask} . {text}"), label_words.task()]
    hosts = []
    for _ in range(2):
        model, tokenizer = label_words.reader(kind)
        hosts.append(hosted(methods, model=model, task=tasks[0]))
    settings = [Settings(max_steps=3, batch_size=n, learning_rate=1e-2, precision="float32") for n in (2, 3, 2)]
    trainings = [AdapterTraining(f"a{i}", tasks[i], label_words.rows(), None, settings[i]) for i in range(3)]
    host, other = hosts
    check_equal(host, train_together(host, trainings, tokenizer), other, apart(other, trainings, tokenizer))


def test_a_mixture_shares_passes_with_other_tasks():
    tokenizer = models.tiny_tokenizer()
    mixture = Mixture({name: TASKS[name][0] for name in ("classes", "tags")}, temperature=1.0)
    rows = mixture.marked({name: TASKS[name][1] for name in ("classes", "tags")})

    def made():
        host = hosted(["LoRA(r=2)"])
        host.attach("a1", parse("LoRA(r=2)"), head=mixture.make_head(host.model.config, dropout=0.0))
        return host

    settings = Settings(max_steps=4, batch_size=6, learning_rate=1e-2, precision="float32")
    trainings = [
        AdapterTraining("a0", *TASKS["classes"], None, settings),
        AdapterTraining("a1", mixture, rows, None, settings),
    ]
    host, other = made(), made()
    check_equal(host, train_together(host, trainings, tokenizer), other, apart(other, trainings, tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_methods_tasks_and_optimizers_share_a_base(kind, tmp_path):
    """Everything differs but the base; heads drop, as they do by default."""
    tokenizer = generation_tokenizer()
    answer = Generate(text=("input",), label="output", prompt="plain", new_tokens=4, max_length=64)
    tasks = [TASKS["classes"], TASKS["tags"], TASKS["many"], TASKS["number"], TASKS["span"]]
    if kind != "bert":
        tasks[1:1] = [(answer, generation_rows(12)), (answer, generation_rows(9, seed=4, longest=14))]
    methods = [
        "LoRA(r=4)",
        "Prefix(length=3)",
        "Prompt(length=4)",
        "Bottleneck(size=4)",
        "IA3()",
        "LoRA(r=1)",
        "VeRA(r=4)",
    ]
    optimizers = ["adamw", "paged-adamw", "adamw-8bit", "paged-adamw-8bit"]
    hosts = []
    for _ in range(2):
        host = Host(models.tiny(kind, None if kind == "bert" else "lm", dropout=False))
        for i, (task, _) in enumerate(tasks):
            head = task.make_head(host.model.config, seed=i)
            host.attach(f"a{i}", parse(methods[i]), seed=i, head=False if head is None else head)
        hosts.append(host)
    trainings = [
        AdapterTraining(
            f"a{i}",
            task,
            rows,
            rows[:4],
            Settings(
                max_steps=3 + i % 3,
                batch_size=3 + i % 2,
                learning_rate=(1e-2, 3e-3)[i % 2],
                optimizer=optimizers[i % 4],
                schedule=("linear", "cosine", "constant")[i % 3],
                accumulation=1 + i % 2,
                precision="float32",
                seed=i,
            ),
        )
        for i, (task, rows) in enumerate(tasks)
    ]
    host, other = hosts
    outcomes, others = train_together(host, trainings, tokenizer), apart(other, trainings, tokenizer)
    span = f"a{len(tasks) - 1}", "head.out.bias"  # the same for all positions, so that its gradient is rounding
    check_equal(host, outcomes, other, others, without_gradient=[span])


def test_a_head_drops_what_it_drops_alone():
    hosts = []
    for _ in range(2):
        host = Host(models.tiny("bert", dropout=False))
        for i in range(3):
            host.attach(
                f"a{i}", parse("LoRA(r=2)"), seed=i, head=TASK.make_head(host.model.config, seed=i, dropout=0.5)
            )
        hosts.append(host)
    host, other = hosts
    tokenizer = models.tiny_tokenizer()
    check_equal(host, train_together(host, asked(3), tokenizer), other, apart(other, asked(3), tokenizer))


def test_packed_rows_share_a_pass():
    tokenizer = generation_tokenizer()
    task = LanguageModel(max_length=32)
    methods = ["LoRA(r=2)", "LoRA(r=4)"]
    host, other = (hosted(methods, model=models.tiny("llama", "lm", dropout=False), task=task) for _ in range(2))
    trainings = [
        AdapterTraining(
            f"a{i}",
            task,
            [{"text": row["input"]} for row in generation_rows(12, seed=i, longest=5 + 9 * i)],
            None,
            Settings(max_steps=3, batch_size=4, learning_rate=1e-2, precision="float32", packing=True),
        )
        for i in range(2)
    ]
    check_equal(host, train_together(host, trainings, tokenizer), other, apart(other, trainings, tokenizer))


@pytest.mark.parametrize("first", ["together", slow("apart")])
def test_a_run_goes_on_where_the_other_kind_paused(first, tmp_path):
    tokenizer, methods = models.tiny_tokenizer(), METHODS[:3]
    host, other, resumed = (hosted(methods) for _ in range(3))

    def trainings(**fields):
        each = asked(len(methods))
        return [AdapterTraining(**{**vars(t), "out": tmp_path / t.name, **fields}) for t in each]

    plain = apart(other, asked(len(methods)), tokenizer)
    if first == "together":
        paused = train_together(host, trainings(until=2), tokenizer)
        finished = apart(resumed, trainings(), tokenizer)
    else:
        paused = apart(host, trainings(until=2), tokenizer)
        finished = train_together(resumed, trainings(), tokenizer)
    assert [outcome.paused for outcome in paused] == [True] * 3
    assert [outcome.history[-1][0] for outcome in paused] == [2] * 3
    assert [outcome.resumed for outcome in finished] == [2] * 3
    for outcome, wanted in zip(finished, plain, strict=True):  # the scores at the pause are not the whole run's
        assert outcome.evaluations[-1][0] == wanted.evaluations[-1][0]
        assert outcome.evaluations[-1][1] == pytest.approx(wanted.evaluations[-1][1], abs=1e-3)
        assert [loss for _, loss in outcome.history] == pytest.approx([loss for _, loss in wanted.history], abs=1e-4)
    for name in host.adapters:
        assert_same(tensors(resumed, name), tensors(other, name), **NEAR)


def test_a_training_that_diverges_fails_alone():
    tokenizer, number = models.tiny_tokenizer(), TASKS["number"][0]
    rows = [{"text": "the film", "label": 1e30}, {"text": "the plot", "label": -1e30}] * 6

    def made():
        host = hosted(["LoRA(r=2)", "LoRA(r=2)"])
        host.attach("bad", parse("LoRA(r=2)"), head=number.make_head(host.model.config, dropout=0.0))
        return host

    host, other, start = made(), made(), made()
    bad = AdapterTraining("bad", number, rows, None, Settings(max_steps=5, batch_size=4, learning_rate=1e-3))
    first, second = asked(2)
    outcomes = train_together(host, [first, bad, second], tokenizer)
    assert isinstance(outcomes[1], DeltatuneError)
    assert "the loss became inf in step 1" in str(outcomes[1])
    assert "the labels go up to 1e+30" in str(outcomes[1])
    assert_same(tensors(host, "bad"), tensors(start, "bad"))
    assert all(parameter.grad is None for _, parameter in host.trainable("bad"))
    host.detach("bad"), other.detach("bad")
    check_equal(host, [outcomes[0], outcomes[2]], other, apart(other, [first, second], tokenizer))


def test_a_tensor_that_does_not_learn_stops_its_training_alone():
    host, other = hosted(["LoRA(r=2)"] * 3), hosted(["LoRA(r=2)"] * 3)
    host.adapters["a1"].unread = nn.Parameter(torch.zeros(2))
    outcomes = train_together(host, asked(3), models.tiny_tokenizer())
    assert isinstance(outcomes[1], DeltatuneError)
    assert "adapter 'a1': no gradient in the first step for 1 of" in str(outcomes[1])
    others = apart(other, asked(3), models.tiny_tokenizer())
    for i in (0, 2):
        assert outcomes[i].history[-1][1] == pytest.approx(others[i].history[-1][1], abs=1e-4)


def test_adapters_whose_lower_layers_never_change_train_as_alone():
    methods = ["Probe()", "LoRA(r=2, sites='layers.1.attn.{q,v}')", "LoRA(r=2)", "LoRA(r=3)"]
    host, other = hosted(methods, dropout=0.1), hosted(methods, dropout=0.1)
    outcomes, others = (f(h, asked(4), models.tiny_tokenizer()) for f, h in ((train_together, host), (apart, other)))
    for i in (0, 1):  # bit for bit: dropout too
        assert outcomes[i].history == others[i].history
        assert_same(tensors(host, f"a{i}"), tensors(other, f"a{i}"))
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)


def test_adapters_of_what_all_rows_share_train_one_after_another():
    """DeBERTa projects the relative positions of all rows with the maps of the text."""
    methods = ["LoRA(r=2)", "LoRA(r=2, sites='*.attn.v')", "LNTuning()", "Houlsby(size=3)", "Parallel(size=4)"]
    tokenizer, hosts = models.tiny_tokenizer(), [hosted(methods, "deberta-v2") for _ in range(2)]
    trainings = asked(len(methods))
    check_equal(
        hosts[0], train_together(hosts[0], trainings, tokenizer), hosts[1], apart(hosts[1], trainings, tokenizer)
    )


def test_dropout_draws_from_the_seeds():
    runs = []
    for dropout in (0.1, 0.1, 0.0):
        host = hosted(["LoRA(r=2)"] * 2, dropout=dropout)
        runs.append([outcome.history for outcome in train_together(host, asked(2), models.tiny_tokenizer())])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_route_and_modes_are_restored_and_every_run_reports(tmp_path):
    host = hosted(["LoRA(r=2)"] * 2)
    host.use("a1")
    modes = {name: module.training for name, module in host.model.named_modules()}
    steps = []
    trainings = asked(2, on_step=lambda *step: steps.append(step[:2]))
    trainings = [AdapterTraining(**{**vars(t), "reports": tmp_path / t.name}) for t in trainings]
    outcomes = train_together(host, trainings, models.tiny_tokenizer())
    assert host.route.names == {"a1"}
    assert {name: module.training for name, module in host.model.named_modules()} == modes
    assert steps == [(1, 5), (1, 3), (2, 5), (2, 3), (3, 5), (3, 3), (4, 5), (5, 5)]
    for training, outcome in zip(trainings, outcomes, strict=True):
        lines = read(tmp_path / training.name / "metrics.jsonl")
        assert [(line["step"], line["loss"]) for line in lines if "loss" in line] == outcome.history
        assert len(host.adapters[training.name].trained_rows.train) > 0


def test_memory_that_is_used_up_stops_all_and_says_what_to_lower():
    def full(*step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(DeltatuneError, match="most_rows, or fewer adapters together, now 2"):
        train_together(hosted(["LoRA(r=2)"] * 2), asked(2, on_step=full), models.tiny_tokenizer())


# --- refusals ---


def test_methods_that_cannot_share_a_pass_are_named_with_those_that_can():
    host = hosted(["LoRA(r=2)", "Full()", "TopLayers(1)", "IA3()"])
    with pytest.raises(DeltatuneError) as error:
        train_together(host, asked(4), models.tiny_tokenizer())
    assert "adapter 'a1', Full()" in str(error.value)
    assert "adapter 'a2', TopLayers" in str(error.value)
    assert "those that can: a0, a3" in str(error.value)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda t: [], "there are no trainings"),
        (lambda t: [t[0], t[0]], "adapter 'a0' is in two trainings"),
        (lambda t: [AdapterTraining(**{**vars(t[0]), "name": "a9"})], "no adapter is called 'a9'"),
        (lambda t: [AdapterTraining(**{**vars(e), "out": "same"}) for e in t], "two trainings write"),
        (lambda t: [AdapterTraining(**{**vars(e), "rows_train": []}) for e in t], "adapter 'a1': there are no rows"),
        (lambda t: [AdapterTraining(**{**vars(e), "until": 2}) for e in t], "adapter 'a1': until=2"),
        (lambda t: [AdapterTraining(**{**vars(t[0]), "settings": Settings(learning_rate="auto")})], "give a number"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(change, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host = hosted(["LoRA(r=2)"] * 2)
    before = tensors(host, "a0")
    with pytest.raises(DeltatuneError, match=wanted.replace("(", r"\(")):
        train_together(host, change(asked(2)), models.tiny_tokenizer())
    assert_same(tensors(host, "a0"), before)


def test_a_checkpoint_of_another_run_stops_one_training(tmp_path):
    host, tokenizer = hosted(["LoRA(r=2)"] * 2), models.tiny_tokenizer()
    trainings = [AdapterTraining(**{**vars(t), "out": tmp_path / t.name, "until": 2}) for t in asked(2)]
    train_together(host, trainings, tokenizer)
    again = [AdapterTraining(**{**vars(t), "until": None}) for t in trainings]
    again[0] = AdapterTraining(**{**vars(again[0]), "rows_train": make_rows(33, seed=9)})
    failed, finished = train_together(hosted(["LoRA(r=2)"] * 2), again, tokenizer)
    assert "is a checkpoint of another run" in str(failed)
    assert finished.resumed == 2
    assert finished.history[-1][0] == 3


# --- which batches share a pass, and whether it pays ---


def cost(sizes, passes, pass_tokens):
    return sum(
        sum(sizes[i].rows for i in each) * (max(sizes[i].width for i in each) + max(sizes[i].virtual for i in each))
        + pass_tokens
        for each in passes
    )


@pytest.mark.parametrize("seed", range(5))
def test_passes_are_cut_where_padding_costs_more_than_a_pass(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda most: int(torch.randint(1, most, (), generator=generator))  # noqa: E731
    sizes = [_Size(draw(9), 8 * draw(9), 0, 0) for _ in range(6)]
    order = sorted(range(6), key=lambda i: sizes[i].width)
    passes = cut_by_width(sizes, 100)
    assert sorted(itertools.chain(*passes)) == list(range(6))
    every = []
    for cuts in itertools.product((False, True), repeat=5):
        parts = [[order[0]]]
        for i, cut in zip(order[1:], cuts, strict=True):
            parts = [*parts, [i]] if cut else [*parts[:-1], [*parts[-1], i]]
        every.append(cost(sizes, parts, 100))
    assert cost(sizes, passes, 100) == min(every)


LONG = [{"text": " ".join([word] * 150), "label": label} for word, label in (("film", "good"), ("plot", "bad"))] * 4


def test_passes_keep_to_positions_and_rows():
    long, prompted = _Size(4, 120, 0, 0), _Size(4, 104, 20, 20)
    assert cut_by_width([long, prompted], 10**6) == [[1, 0]] or cut_by_width([long, prompted], 10**6) == [[0, 1]]
    assert len(cut_by_width([long, prompted], 10**6, longest=128)) == 2
    assert len(cut_by_width([_Size(4, 8, 0, 0)] * 4, 10**6, most_rows=8)) == 2
    assert len(cut_by_width([_Size(9, 8, 0, 0)] * 2, 10**6, most_rows=8)) == 2


def test_long_texts_and_long_prompts_do_not_exceed_the_positions():
    host = hosted(["LoRA(r=2)", "Prompt(length=20)", "Prefix(length=30)"])
    settings = Settings(max_steps=2, batch_size=4, precision="float32")
    lengths = [models.POSITIONS, models.POSITIONS - 20, models.POSITIONS - 30]
    trainings = [
        AdapterTraining(f"a{i}", Classify(labels=("bad", "good"), max_length=most), LONG, None, settings)
        for i, most in enumerate(lengths)
    ]
    outcomes = train_together(host, trainings, models.tiny_tokenizer())
    assert all(math.isfinite(outcome.history[-1][1]) for outcome in outcomes)


def test_measuring_changes_nothing():
    host = hosted(["LoRA(r=2)", "Prefix(length=2)", "Probe()"], dropout=0.1)
    before, route = {name: tensors(host, name) for name in host.adapters}, host.route
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert isinstance(is_faster(host, asked(3), models.tiny_tokenizer()), bool)
    assert torch.equal(torch.get_rng_state(), state)
    assert host.route is route
    for name, values in before.items():
        assert_same(tensors(host, name), values)
        assert all(parameter.grad is None for _, parameter in host.trainable(name))
    assert not is_faster(host, asked(3)[2:], models.tiny_tokenizer())  # one alone shares no pass


def test_the_faster_way_is_the_measured_one(monkeypatch):
    host = hosted(["LoRA(r=2)"] * 2)
    for apart_seconds, faster in ((3.0, True), (1.0, False), (0.5, False)):
        clock = itertools.accumulate(itertools.cycle([1.0, apart_seconds, 1.0, 1.0]))  # the seconds together are 1
        monkeypatch.setattr(
            "deltatune.training.joint_training.pass_speed.perf_counter", lambda clock=clock: next(clock)
        )
        assert is_faster(host, asked(2), models.tiny_tokenizer()) == faster
