"""Facts: ranks equal to LAMA's rule by hand on every family, rows left out and counted, wordings, the report."""

import json
import math

import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.prompting.facts import as_template, fact_report, facts_of, rank_objects, read_wordings, softened
from deltatune.prompting.facts.fact_ranks import WordingRanks
from deltatune.prompting.facts.fact_report import paired_test, wilson_interval
from deltatune.prompting.facts.fact_rows import FactColumns, fact_columns
from deltatune.tasks import task_from_json
from deltatune.tasks.blanks import LONG, NO_CANDIDATE, SEVERAL, UNKNOWN
from deltatune.tasks.fact_completion import FactCompletion, fact_task
from deltatune.training.task_model import TaskModel
from support import models, vocabularies

ROWS = [
    {"subject": subject, "object": answer}
    for subject, answer in [
        ("the film", "good"), ("plot", "bad"), ("a very long actor name", "great"), ("it", "awful"), ("this", "film"),
        ("the plot of this film", "actor"), ("Bea's", "good"), ("not", "very"),
    ]
]  # fmt: skip
WORDING = "[X] is located in [Y] ."


def host_of(kind, **config):
    return deltatune.Host(models.tiny(kind, "lm", dropout=False, **config))


def task_for(host, tokenizer, wording=WORDING, candidates=None, **fields):
    return fact_task(
        as_template(wording), host.model.config, host.sites.facts.vocabulary, tokenizer, candidates, **fields
    )


def plain_rank(log_probabilities, word, tokenizer, candidates=None):
    """LAMA's rule: gather the candidates out of the log-probabilities (V,), sort, and find the object."""
    ids = [tokenizer.convert_tokens_to_ids(each) for each in candidates] if candidates else [
        id for id in range(len(log_probabilities)) if id not in tokenizer.all_special_ids and id < len(tokenizer)
    ]  # fmt: skip
    ids = sorted(ids)
    order = log_probabilities[ids].argsort(descending=True)
    ranked = [ids[i] for i in order.tolist()]
    return 1 + ranked.index(tokenizer.convert_tokens_to_ids(word))


@pytest.mark.parametrize("candidates", [None, ["good", "bad", "great", "awful", "film", "actor", "very"]])
@torch.no_grad()
def test_ranks_of_a_masked_model_are_those_of_lamas_rule(candidates):
    host, tokenizer = host_of("bert"), models.tiny_tokenizer()
    expected = []
    for row in ROWS:
        text = WORDING.replace("[X]", row["subject"]).replace("[Y]", tokenizer.mask_token)
        batch = tokenizer(text, return_tensors="pt")
        at = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        scores = host.model(**batch).logits[0, at].log_softmax(-1)
        expected.append(plain_rank(scores, row["object"], tokenizer, candidates))
    got = rank_objects(host, tokenizer, task_for(host, tokenizer, candidates=candidates), ROWS)
    assert got.ranks == expected
    assert len(set(expected)) > 3
    assert got.cost.passes == len(ROWS)
    assert got.cost.tokens == sum(
        len(tokenizer(WORDING.replace("[X]", row["subject"]).replace("[Y]", "[MASK]"))["input_ids"]) for row in ROWS
    )
    ordered = sorted(candidates or [], key=tokenizer.convert_tokens_to_ids)
    assert all(word in ordered for word in got.words) or candidates is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_ranks_of_a_left_to_right_model_are_those_of_the_next_token(kind):
    host, tokenizer = host_of(kind), models.tiny_tokenizer()
    expected = []
    for row in ROWS:
        text = WORDING.replace("[X]", row["subject"]).partition("[Y]")[0]
        ids = tokenizer(text)["input_ids"][:-1]  # no end token in the middle of a text
        scores = host.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        expected.append(plain_rank(scores, row["object"], tokenizer))
    assert rank_objects(host, tokenizer, task_for(host, tokenizer), ROWS).ranks == expected


@torch.no_grad()
def test_ranks_of_bart_are_those_of_its_own_mask_filling():
    host, tokenizer = host_of("bart"), models.tiny_tokenizer()
    expected = []
    for row in ROWS:
        text = WORDING.replace("[X]", row["subject"]).replace("[Y]", tokenizer.mask_token)
        batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        at = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        scores = host.model(**batch).logits[0, at].log_softmax(-1)  # its decoder reads the input one step later
        expected.append(plain_rank(scores, row["object"], tokenizer))
    assert rank_objects(host, tokenizer, task_for(host, tokenizer), ROWS).ranks == expected


@torch.no_grad()
def test_ranks_of_t5_are_those_behind_its_sentinel():
    tokenizer = vocabularies.tokenizer("t5")
    model = models.tiny("t5", "lm", dropout=False)
    model.resize_token_embeddings(len(tokenizer) + 3)
    host = deltatune.Host(model.eval())
    words = [piece.removeprefix("▁") for piece in sorted(tokenizer.get_vocab()) if piece[1:].isalpha()]
    words = [word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    rows = [{"subject": f"The {word}", "object": word} for word in words]
    task = task_for(host, tokenizer, "[X] was in the [Y].")
    assert task.blank == "sentinel"
    got = rank_objects(host, tokenizer, task, rows)
    (sentinel,) = tokenizer("<extra_id_0>", add_special_tokens=False)["input_ids"]
    sentinels = [id for name, id in tokenizer.get_vocab().items() if name.startswith("<extra_id_")]
    for row, rank in zip(rows, got.ranks, strict=True):
        before = tokenizer(f"{row['subject']} was in the", add_special_tokens=False)["input_ids"]
        ids = [*before, sentinel, tokenizer.convert_tokens_to_ids("."), tokenizer.eos_token_id]  # as in natural text
        out = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, sentinel]]))
        scores = out.logits[0, 1].log_softmax(-1)
        scores[[*sentinels, *tokenizer.all_special_ids, *range(len(tokenizer), len(scores))]] = -torch.inf
        (id,) = tokenizer(row["object"], add_special_tokens=False)["input_ids"]
        assert rank == 1 + int((scores > scores[id]).sum())
    assert len(set(got.ranks)) > 3


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "bart"])
def test_a_batch_and_padding_change_nothing(kind):
    host, tokenizer = host_of(kind), models.tiny_tokenizer()
    task = task_for(host, tokenizer)
    together = rank_objects(host, tokenizer, task, ROWS)
    alone = [rank_objects(host, tokenizer, task, [row]) for row in ROWS]
    assert together.ranks == [one.ranks[0] for one in alone]
    assert together.words == [one.words[0] for one in alone]


def test_rows_that_cannot_be_scored_are_left_out_and_counted():
    host, tokenizer = host_of("bert"), models.tiny_tokenizer()
    rows = [
        *ROWS[:2], {"subject": "x", "object": "canada"}, {"subject": "x", "object": "日本"},
        {"subject": "x " * 200, "object": "good"}, {"subject": "x", "object": "plot"},
        {"subject": "x", "object": "[MASK]"},
    ]  # fmt: skip
    task = task_for(host, tokenizer, candidates=["good", "bad", "great", "canada"])
    got = rank_objects(host, tokenizer, task, rows)
    assert got.left_out == {SEVERAL: 1, UNKNOWN: 2, LONG: 1, NO_CANDIDATE: 1}
    assert [rank is None for rank in got.ranks] == [False, False, True, True, True, True, True]
    assert max(got.counted) <= 3  # of three candidates
    with pytest.raises(DeltatuneError, match=r"row 2: 'canada' of 'x': several tokens[\s\S]*leaves other rows out"):
        task.encode(rows, tokenizer)
    with pytest.raises(DeltatuneError, match="none of the 2 candidates is one token"):
        task_for(host, tokenizer, candidates=["canada", "日本"])


def test_equal_scores_have_different_ranks():
    task = FactCompletion(not_words=(0,))
    outputs = {"logits": torch.tensor([[[9.0, 1, 1, 1, 0]] * 3])[:, :, :][0][None]}
    statistics = task.extra_statistics(outputs, {"labels": torch.tensor([1, 2, 4])})
    assert statistics[:, 0].tolist() == [1, 2, 4]
    assert statistics[:, 1].tolist() == [1, 1, 1]
    among = FactCompletion(candidates=(2, 3)).extra_statistics(outputs, {"labels": torch.tensor([2, 3, 3])})
    assert among[:, 0].tolist() == [1, 2, 2]


def test_the_loss_is_over_the_vocabulary_or_the_candidates():
    host, tokenizer = host_of("bert"), models.tiny_tokenizer()
    host.attach("a", deltatune.parse("LoRA(r=2)"), head=False)
    logits = torch.randn(3, models.VOCABULARY, generator=torch.Generator().manual_seed(0))
    words = ["good", "bad", "film"]
    tasks = {over: task_for(host, tokenizer, candidates=words, over=over) for over in ("vocabulary", "candidates")}
    labels = torch.tensor(tasks["candidates"].candidates)
    whole = -logits.log_softmax(-1)[range(3), labels].sum()
    some = -logits[:, labels].log_softmax(-1).diagonal().sum()
    assert tasks["vocabulary"].loss(logits, labels) == pytest.approx(float(whole), rel=1e-5)
    assert tasks["candidates"].loss(logits, labels) == pytest.approx(float(some), rel=1e-5)
    assert isinstance(TaskModel(host, "a", tasks["vocabulary"]), torch.nn.Module)
    with pytest.raises(DeltatuneError, match="needs candidates"):
        FactCompletion(over="candidates")


def test_a_task_is_stored_and_scored():
    task = FactCompletion(candidates=(5, 7), top=3)
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task
    answers = [{"ranks": ranks, "nll": len(ranks), "tokens": len(ranks)} for ranks in ([1, 2], [4], [1])]
    assert task.score(answers, None) == {"p@1": 0.5, "p@3": 0.75, "mrr": 2.75 / 4, "loss": 1.0}
    assert task.describe().startswith("the object in '{subject} is {mask}.', ranked among 2 candidates")


# ---- wordings


@pytest.mark.parametrize(
    ("wording", "template"),
    [
        ("[X] is located in [Y] .", "{subject} is located in {mask} ."),
        ("{subject}'s capital: {mask}", "{subject}'s capital: {mask}"),
        ("[Y] is where {subject} is, says [X]", "{mask} is where {subject} is, says {subject}"),
    ],
)
def test_wordings_are_templates(wording, template):
    assert as_template(wording) == template


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ("[X] is here.", r"needs \[X\].*one \[Y\]"),
        ("in [Y].", r"needs \[X\]"),
        ("[X] is in [Y] or [Y]", "this one has 2"),
        ("[X] is in [Y], {country}", r"the field \{country\}"),
        ("[X] is { in [Y]", "brace"),
    ],
)
def test_wordings_that_cannot_be_used_are_refused(wording, message):
    with pytest.raises(DeltatuneError, match=message):
        as_template(wording)


def test_left_to_right_models_need_the_blank_at_the_end():
    host, tokenizer = host_of("gpt2"), models.tiny_tokenizer()
    assert task_for(host, tokenizer, "[X] is in [Y] .").blank == "next"
    with pytest.raises(DeltatuneError, match=r"'\{mask\} is where \{subject\} is' is not at its end"):
        task_for(host, tokenizer, "[Y] is where [X] is")


def test_wordings_are_read_by_relation(tmp_path):
    path = tmp_path / "relations.jsonl"
    rows = [
        {"relation": "P1", "template": "[X] a [Y] .", "templates": ["[X] a [Y] .", "[X] b [Y]"]},
        {"relation": "P2", "template": None, "templates": []},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_wordings(path) == {"P1": ("[X] a [Y] .", "[X] b [Y]"), "P2": ()}
    bad = [{"relation": "P1", "template": "[X] a"}, {"relation": "P1", "templates": "[X] [Y]"}, {"template": "[X] [Y]"}]
    path.write_text("\n".join(map(json.dumps, bad)))
    with pytest.raises(
        DeltatuneError, match=r"row 1: cannot use[\s\S]*row 2: templates is[\s\S]*row 3 has no relation"
    ):
        read_wordings(path)


# ---- rows


def test_columns_are_inferred():
    published = [{"predicate_id": "P1", "sub_label": "a", "obj_label": "b", "uuid": "c"}]
    assert fact_columns(published, "x") == FactColumns("sub_label", "obj_label", "predicate_id")
    assert fact_columns([{"city": "a", "country": "b"}], "x") == FactColumns("city", "country", None)
    rows = [{"one": "a", "two": "b", "three": "c"}]
    with pytest.raises(
        DeltatuneError, match=r"no column of subjects: name it with --subject; columns: one, two, three"
    ):
        fact_columns(rows, "x")
    assert fact_columns(rows, "x", subject="two", object="one") == FactColumns("two", "one", None)
    with pytest.raises(DeltatuneError, match=r"--subject tow: x has no such column, did you mean 'two'"):
        fact_columns(rows, "x", subject="tow", object="one")


def test_each_fact_counts_once():
    columns = FactColumns("s", "o", "r")
    rows = [
        {"s": s, "o": o, "r": r} for s, o, r in [("a", "b", "P"), ("a", "b", "P"), ("a", "c", "P"), ("a", "b", "Q")]
    ]
    facts = facts_of([*rows, {"s": "x", "o": 1960, "r": "Q"}], "file", columns)
    assert {name: len(rows) for name, rows in facts.relations.items()} == {"P": 2, "Q": 2}
    assert facts.repeats == {"P": 1, "Q": 0}
    assert facts.objects("Q") == ["b", "1960"]
    others, dropped = facts.without(facts.of(["P"]))
    assert dropped == 2
    assert others.relations["P"] == []
    assert len(others.relations["Q"]) == 2
    with pytest.raises(DeltatuneError, match=r"no relation 'p'[\s\S]*relations: P, Q"):
        facts.of(["p"])
    with pytest.raises(DeltatuneError, match=r"row 2 has None in column 'o'[\s\S]*row 3 has '' in column 's'"):
        facts_of([rows[0], {"s": "a", "r": "P"}, {"s": "", "o": "b", "r": "P"}], "file", columns)


# ---- report


def ranked(wording, ranks, source="wording"):
    left_out = {SEVERAL: ranks.count(None)} if None in ranks else {}
    return WordingRanks(wording, ranks, [None] * len(ranks), left_out, source=source)


def test_intervals_and_tests_are_those_of_the_tables():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert paired_test([1] * 17 + [2], [2] * 17 + [3]) == {"rows": 18, "gained": 17, "lost": 0, "p": 2 / 2**17}
    assert paired_test([1, None, 2], [1, 1, None]) == {"rows": 1, "gained": 0, "lost": 0, "p": 1.0}
    many = paired_test([1] * 2000 + [2] * 1900, [2] * 2000 + [1] * 1900)
    z = 100 / math.sqrt(3900)  # the normal approximation with its continuity correction
    assert many["p"] == pytest.approx(math.erfc((z - 1 / math.sqrt(3900)) / math.sqrt(2)), rel=0.01)


def test_means_over_relations_and_wordings():
    results = {
        "P1": [ranked("a", [1, 2, None, 1]), ranked("b", [1, 2, None, 12])],
        "P2": [ranked("c", [3, 4]), ranked("d", [1, 11])],
        "P3": [ranked("e", [None, None])],
    }
    objects = {"P1": ["x", "y", "x", "x"], "P2": ["x", "y"], "P3": ["x", "y"]}
    report = fact_report(results, objects, (1, 10), {"P1": 2})
    one, two, three = report["relations"]
    assert one["most_frequent"] == {"object": "x", "p@1": 2 / 3}
    assert one["repeats"] == 2
    assert [wording["p@1"] for wording in one["wordings"]] == [2 / 3, 1 / 3]
    assert one["wordings"][0]["left_out"] == {SEVERAL: 1}
    assert three["wordings"][0]["p@1"] is None
    assert two["wordings"][1]["against_first"]["gained"] == 1
    means = report["means"]
    assert means["first"]["micro"]["p@1"] == 2 / 5
    assert means["first"]["macro"]["p@1"] == pytest.approx(1 / 3)
    assert means["first"]["macro"]["p@10"] == 1.0
    assert means["first"]["relations"] == 2
    assert means["best"]["macro"]["p@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert means["all"]["macro_mean"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert means["all"]["wordings"] == 4


def test_words_of_a_wording_become_virtual_tokens():
    assert softened("[X] is located in [Y] .") == "{subject} {soft:is located in} {mask} {soft:.}"
    with pytest.raises(DeltatuneError, match="no words to train"):
        softened("[X] [Y]")
