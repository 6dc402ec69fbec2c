"""Pretraining objectives as tasks: dynamic targets, the loss in a loop, scores, storage."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForPreTraining, Trainer, TrainingArguments

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.registry import parse
from deltatune.tasks import task_from_json
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.pretraining import (
    MaskedLM,
    NextSentence,
    PrefixLM,
    ReplacedEntities,
    SpanCorruption,
    fill_spans,
    objective_from,
    span_lengths,
    with_entities,
)
from deltatune.tasks.pretraining.objective_registry import OBJECTIVES, PRESETS
from deltatune.tasks.task import IGNORED
from deltatune.training import Settings, predict, train
from support import models
from support.models import EOS, MASK

TEXTS = [
    "the film was very good and the plot was great",
    "this actor is bad and the film is awful",
    "it was not a good plot and the actor is not very great",
]
ROWS = [{"text": text} for text in TEXTS * 8]
DOCUMENTS = [{"text": "\n".join(TEXTS[i:] + TEXTS[:i])} for i in range(3)] * 3
MARKS = ("?", "!", ":")


@pytest.fixture(scope="module")
def tokenizer():
    results = models.tiny_tokenizer()
    results.bos_token, results.eos_token = "[CLS]", "[SEP]"
    return results


def whole(row):
    """The ids of a masked row with what is hidden back in place."""
    return [id if label == IGNORED else label for id, label in zip(row["input_ids"], row["labels"], strict=True)]


def draws(task, row, count):
    return [task.draw(row, generator_for(0, f"test.{n}")) for n in range(count)]


# --- masked language modelling ---


def test_masked_rows_are_the_text_in_pieces(tokenizer):
    task = MaskedLM(max_length=8)
    encoded = task.encode(ROWS[:3], tokenizer)
    back = {}
    for owner, row in zip(encoded.owners, encoded, strict=True):
        assert len(row["input_ids"]) <= 8
        back.setdefault(owner, []).extend(whole(row)[1:-1])
    assert [back[i] for i in range(3)] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert encoded.examples == 3
    again = task.encode(ROWS[:3], tokenizer)
    assert again.rows == encoded.rows != dataclasses.replace(task, seed=1).encode(ROWS[:3], tokenizer).rows


def test_drawn_again_and_again_a_row_stays_its_text_and_hides_other_words(tokenizer):
    task = MaskedLM()
    row = task.encode(ROWS[:1], tokenizer).rows[0]
    first, text = row, whole(row)
    hidden = Counter()
    for n in range(300):
        row = task.draw(row, generator_for(0, f"test.{n}"))  # from the row drawn before
        assert whole(row) == text
        hidden.update(place for place, label in enumerate(row["labels"]) if label != IGNORED)
    assert set(hidden) == set(range(1, len(text) - 1))
    assert task.draw(first, generator_for(0, "test.299")) == row


def test_whole_words_and_entities_of_rows(tokenizer):
    rows = [{"text": "the quick film was not a xylophone", "entities": [[4, 14]], "words": ["the quick film"]}]
    ids = tokenizer(rows[0]["text"])["input_ids"]
    quick = list(range(2, 7))
    entity = MaskedLM(unit="entity", rate=0.4).encode(rows, tokenizer).rows[0]
    assert len({entity["units"][place] for place in [*quick, 7]}) == 1  # "quick film"
    word = MaskedLM(unit="word", rate=0.4).encode(rows, tokenizer).rows[0]
    assert len({word["units"][place] for place in quick}) == 1
    assert word["units"][7] != word["units"][6]
    assert [unit == -1 for unit in word["units"]] == [True, *[False] * (len(ids) - 2), True]
    given = MaskedLM(unit="word", words="words").encode(rows, tokenizer).rows[0]
    assert len(set(given["units"][1:8])) == 1  # the segmentation's word, of three
    assert given["units"][8] != given["units"][7]
    seen = Counter()
    for row in draws(MaskedLM(unit="entity", rate=0.4), entity, 100):
        flags = [row["labels"][place] != IGNORED for place in [*quick, 7]]
        assert all(flags) or not any(flags)
        seen[flags[0]] += 1
    assert min(seen[True], seen[False]) > 10


def test_entities_of_a_tagger(tokenizer):
    def tagger(text):
        at = text.find("film")
        return [] if at < 0 else [(at, at + 4, "thing")]

    rows = with_entities(ROWS[:3], tagger)
    assert rows[0]["entities"] == [[4, 8, "thing"]]
    assert MaskedLM(unit="entity").encode(rows, tokenizer).examples == 3
    with pytest.raises(DeltatuneError, match="no column 'entities' in row 0"):
        MaskedLM(unit="entity").encode(ROWS, tokenizer)
    with pytest.raises(DeltatuneError, match="row 1: an entity at 4 to 999"):
        MaskedLM(unit="entity").encode([rows[0], {**rows[1], "entities": [[4, 999]]}], tokenizer)


def test_masking_that_cannot_be_is_refused(tokenizer):
    with pytest.raises(DeltatuneError, match="row 1 has no tokens"):
        MaskedLM().encode([ROWS[0], {"text": " "}], tokenizer)
    with pytest.raises(DeltatuneError, match="this model takes 128 tokens"):
        MaskedLM().encode(ROWS, tokenizer, positions=128)
    other = models.tiny_tokenizer()
    other.mask_token = None
    with pytest.raises(DeltatuneError, match="no mask token"):
        MaskedLM().encode(ROWS, other)
    for wrong in ({"rate": 0.0}, {"shares": (0.5, 0.1)}, {"unit": "words"}, {"metric": "f1"}, {"max_length": 2}):
        with pytest.raises(DeltatuneError, match=next(iter(wrong))):
            MaskedLM(**wrong)


# --- training and scoring ---


def host_of(model, method="Full()"):
    host = Host(model)
    host.attach("a", parse(method), head=False)
    return host


def for_pairs(kind="bert"):
    torch.manual_seed(0)
    return AutoModelForPreTraining.from_config(models.tiny(kind).config)


LEARNT = [
    (MaskedLM(max_length=16), "bert", ROWS),
    (MaskedLM(max_length=16, unit="word"), "distilbert", ROWS),
    (NextSentence(max_length=32), "pairs", DOCUMENTS),
    (SpanCorruption(max_length=16, sentinels=MARKS), "t5", ROWS),
    (SpanCorruption(max_length=24, sentinels=MARKS), "gpt2", ROWS),
    (PrefixLM(max_length=16), "t5", ROWS),
    (PrefixLM(max_length=16), "llama", ROWS),
]


@pytest.mark.parametrize(("task", "kind", "rows"), LEARNT, ids=lambda value: getattr(value, "name", None))
def test_an_objective_is_learned_and_scored(task, kind, rows, tokenizer):
    host = host_of(for_pairs() if kind == "pairs" else models.tiny(kind, "lm"))
    settings = Settings(epochs=4, batch_size=8, learning_rate=3e-3, evaluate="end")
    before = task.score(predict(host, "a", task, rows, tokenizer), None)
    outcome = train(host, "a", task, rows, rows, tokenizer, settings)
    after = outcome.evaluations[-1][1]
    assert tuple(before) == tuple(after) == task.metrics
    assert after["loss"] < before["loss"] - 0.5
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert 0 <= before["accuracy"] <= after["accuracy"] <= 1


def test_every_epoch_hides_other_words_and_two_runs_the_same(tokenizer, monkeypatch):
    task, seen = MaskedLM(max_length=16), []
    forward = MaskedLM.loss
    monkeypatch.setattr(
        MaskedLM, "loss", lambda self, logits, labels: (seen.append(labels.tolist()), forward(self, logits, labels))[1]
    )
    settings = Settings(epochs=3, batch_size=3, learning_rate=1e-3, length_grouping=False)
    runs = []
    for _ in range(2):
        seen.clear()
        outcome = train(host_of(models.tiny("bert", "lm")), "a", task, ROWS[:3], None, tokenizer, settings)
        runs.append((list(map(sorted, seen)), outcome.history))
    assert runs[0] == runs[1]
    assert len({tuple(labels) for labels in runs[0][0]}) == 3


def test_scores_of_masked_words_against_the_model_itself(tokenizer):
    task, model = MaskedLM(max_length=16), models.tiny("bert", "lm")
    encoded = task.encode(ROWS[:3], tokenizer)
    nll, right, count = 0.0, 0, 0
    for row in encoded:
        ids = torch.tensor([row["input_ids"]])
        logits, labels = model(ids, attention_mask=torch.ones_like(ids)).logits[0], torch.tensor(row["labels"])
        there = labels != IGNORED
        nll += float(F.cross_entropy(logits[there], labels[there], reduction="sum").detach())
        right += int((logits.argmax(-1) == labels)[there].sum())
        count += int(there.sum())
    host = host_of(model)
    answers = predict(host, "a", task, encoded, tokenizer, precision="float32")
    results = task.score(answers, encoded.references)
    assert results["loss"] == pytest.approx(nll / count, abs=1e-5)
    assert results["accuracy"] == right / count
    assert sum(one["tokens"] for one in task.decode(answers)) == count
    weights = np.array([[1, 1, 1], [3, 0, 0]])
    alone = task.score(answers[:1], None)
    assert task.resampled(answers, None, weights) == pytest.approx([results["perplexity"], alone["perplexity"]])


def test_losses_and_scores_of_pairs_against_the_model_itself(tokenizer):
    task, model = NextSentence(max_length=24, copies=2), for_pairs().eval()
    encoded = task.encode(DOCUMENTS, tokenizer)
    losses, pair_losses, right = [], [], 0
    for row in encoded:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            outputs = model(**inputs)
        losses.append(F.cross_entropy(outputs.prediction_logits[0], torch.tensor(row["labels"])))
        judged, label = outputs.seq_relationship_logits, torch.tensor([row["pair_label"]])
        pair_losses.append(float(F.cross_entropy(judged, label).detach()))
        right += int(judged.argmax() == label)
        with torch.no_grad():
            theirs = model(**inputs, labels=torch.tensor([row["labels"]]), next_sentence_label=label).loss
        assert float(theirs) == pytest.approx(float(losses[-1]) + pair_losses[-1], abs=1e-5)
    results = task.score(predict(host_of(model), "a", task, encoded, tokenizer, precision="float32"), None)
    assert results["pair_loss"] == pytest.approx(np.mean(pair_losses), abs=1e-5)
    assert results["pair_accuracy"] == right / len(encoded)


# --- next sentences ---


def test_pairs_are_framed_as_the_tokenizer_does(tokenizer):
    encoded = NextSentence(max_length=24, copies=3).encode(DOCUMENTS, tokenizer)
    kinds = Counter(row["pair_label"] for row in encoded)
    assert min(kinds.values()) >= 5
    for row in encoded:
        ids = whole(row)
        first, second = [place for place, id in enumerate(ids) if id == EOS]
        a, b = ids[1:first], ids[first + 1 : second]
        text = tokenizer.decode(a, skip_special_tokens=True), tokenizer.decode(b, skip_special_tokens=True)
        assert len(ids) <= 24
        if "##" not in "".join(tokenizer.convert_ids_to_tokens([a[0], b[0]])):
            expected = tokenizer(*text)
            assert (ids, row["token_type_ids"]) == (expected["input_ids"], expected["token_type_ids"])
        assert row["special"] == [int(id in tokenizer.all_special_ids) for id in ids]


def test_documents_are_texts_with_blank_lines_or_lists_of_sentences(tokenizer):
    task = NextSentence(max_length=24)
    one = task.encode([{"text": "\n".join([*TEXTS, "", *TEXTS])}], tokenizer)
    two = task.encode([{"text": TEXTS}, {"text": TEXTS}], tokenizer)
    assert one.rows == two.rows
    with pytest.raises(DeltatuneError, match="there is 1 document"):
        task.encode([{"text": "\n".join(TEXTS)}], tokenizer)
    with pytest.raises(DeltatuneError, match="row 0: 7 is neither"):
        task.encode([{"text": 7}], tokenizer)


# --- spans and prefixes ---


def test_corrupted_rows_of_an_encoder_decoder_and_of_a_decoder(tokenizer):
    sentinels = tokenizer.convert_tokens_to_ids(list(MARKS))
    task = SpanCorruption(max_length=12, sentinels=MARKS)
    apart, joined = task.encode(ROWS[:3], tokenizer), task.encode(ROWS[:3], tokenizer, joined=True)
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for row in draws(task, apart.rows[0], 20):
        assert len(row["input_ids"]) <= 12
        assert row["input_ids"][-1:] == row["labels"][-1:] == end
        assert fill_spans(row["input_ids"][:-1], row["labels"][:-1], sentinels) == apart.rows[0]["whole"]
    assert len(apart.rows[0]["whole"]) == min(span_lengths(12)[0], 10)
    for row in draws(task, joined.rows[0], 20):
        assert len(row["input_ids"]) == len(row["labels"]) <= 12
        asked = [label for label in row["labels"] if label != IGNORED]
        read = row["input_ids"][: len(row["input_ids"]) - len(asked)]
        assert row["input_ids"][len(read) :] == asked
        assert asked[-1:] == end
        assert fill_spans(read, asked[:-1], sentinels) == start + joined.rows[0]["whole"]
    for encoded in (apart, joined):
        back = {}
        for owner, row in zip(encoded.owners, encoded, strict=True):
            back.setdefault(owner, []).extend(row["whole"])
        assert list(back.values()) == tokenizer(TEXTS, add_special_tokens=False)["input_ids"]


def test_longest_inputs_are_used_and_a_last_token_is_not_lost(tokenizer):
    for joined in (False, True):
        for count in range(2, 40):
            for task in (SpanCorruption(max_length=12, sentinels=MARKS), PrefixLM(max_length=12)):
                encoded = task.encode([{"text": "film " * count}], tokenizer, joined=joined)
                lengths = [len(row["whole"]) for row in encoded]
                assert sum(lengths) == count
                assert min(lengths) >= 2
                assert all(len(row["input_ids"]) <= 12 for drawn in encoded for row in draws(task, drawn, 3))


def test_prefixes_of_an_encoder_decoder_and_of_a_decoder(tokenizer):
    task = PrefixLM(max_length=32)
    row = task.encode(ROWS[:1], tokenizer).rows[0]
    end, cuts = [tokenizer.eos_token_id], Counter()
    for drawn in draws(task, row, 200):
        assert drawn["input_ids"][:-1] + drawn["labels"] == row["whole"] + end
        assert drawn["input_ids"][-1:] == end
        cuts[len(drawn["input_ids"])] += 1
    assert len(cuts) == 9  # of ten tokens, after 1 to 9
    row = task.encode(ROWS[:1], tokenizer, joined=True).rows[0]
    assert row["input_ids"] == [tokenizer.bos_token_id, *row["whole"], *end]
    at = row["labels"].count(IGNORED)
    assert at >= 2
    assert row["labels"][at:] == row["input_ids"][at:]


def test_writing_that_cannot_be_is_refused(tokenizer):
    with pytest.raises(DeltatuneError, match=r"no sentinels.*add_tokens"):
        SpanCorruption().encode(ROWS, tokenizer)
    with pytest.raises(DeltatuneError, match="row 1: the text has the sentinel"):
        SpanCorruption(sentinels=MARKS).encode([ROWS[0], {"text": "good film!"}], tokenizer)
    for task in (SpanCorruption(sentinels=MARKS), PrefixLM()):
        with pytest.raises(DeltatuneError, match="row 1 has 1 tokens"):
            task.encode([ROWS[0], {"text": "film"}], tokenizer)
    with pytest.raises(DeltatuneError, match="density=2"):
        SpanCorruption(density=2.0)


# --- replaced entities ---


def person(name, place):
    at = len(name) + 12
    return {
        "text": f"{name} was in the {place} film",
        "entities": [[0, len(name), "who"], [at, at + len(place), "what"]],
    }


PEOPLE = [person("ann", "good"), person("bob", "bad"), person("eve", "great")]


def test_replaced_entities_are_asked_for_at_their_first_token(tokenizer):
    task = ReplacedEntities(copies=200)
    encoded = task.encode(PEOPLE, tokenizer)
    assert len(encoded) == encoded.examples == 600
    kinds = Counter()
    for row, places, truth in zip(encoded, encoded.facts, encoded.row_references, strict=True):
        asked = {place: label for place, label in enumerate(row["labels"]) if label != IGNORED}
        assert asked == dict(zip(places, map(int, truth), strict=True))
        kinds.update(truth)
    assert kinds[True] / 1200 == pytest.approx((1 / 2 + 1 / 4) / 2, abs=0.06)
    asked = task.encode(PEOPLE, tokenizer, labelled=False)
    assert [row["input_ids"] for row in asked] == tokenizer([row["text"] for row in PEOPLE])["input_ids"]


def test_replaced_entities_are_learned_and_scored(tokenizer):
    task = ReplacedEntities(copies=20, max_length=64)
    host = Host(models.tiny("bert"))
    host.attach("a", parse("Full()"), head=task.make_head(host.model.config))
    outcome = train(host, "a", task, PEOPLE, PEOPLE, tokenizer, Settings(epochs=8, batch_size=8, learning_rate=3e-3))
    assert tuple(outcome.evaluations[-1][1]) == task.metrics
    assert outcome.evaluations[-1][1]["accuracy"] > 0.6
    results = task.decode(predict(host, "a", task, PEOPLE, tokenizer))
    assert [len(one["replaced"]) for one in results] == [2, 2, 2]


def test_scores_of_replaced_entities():
    task = ReplacedEntities()
    answers, truth = [[0.9, 0.2], [0.8, None], [0.1]], [[True, True], [False, True], [False]]
    assert task.score(answers, truth) == {"f1": 0.5, "accuracy": 0.5, "precision": 0.5, "recall": 0.5}
    assert task.resampled(answers, truth, np.array([[1, 0, 0], [0, 1, 1]])).tolist() == [pytest.approx(2 / 3), 0.0]
    with pytest.raises(DeltatuneError, match="no kind has two names"):
        task.encode(PEOPLE[:1], models.tiny_tokenizer())


# --- other loops ---


def test_a_collator_draws_anew_and_pads(tokenizer):
    task = MaskedLM()
    encoded = task.encode(ROWS[:3], tokenizer)
    batches = [list(DataLoader(encoded, batch_size=3, collate_fn=task.collator(tokenizer, seed))) for seed in (0, 0, 1)]
    collate = task.collator(tokenizer)
    one, other = collate(encoded.rows), collate(encoded.rows)
    assert torch.equal(batches[0][0]["labels"], one["labels"])
    assert torch.equal(batches[0][0]["labels"], batches[1][0]["labels"])
    assert not torch.equal(batches[0][0]["labels"], batches[2][0]["labels"])
    assert not torch.equal(one["labels"], other["labels"])
    assert one["input_ids"].shape == one["labels"].shape == one["attention_mask"].shape == (3, 16)
    hidden = one["labels"] != IGNORED
    assert not (hidden & (one["attention_mask"] == 0)).any()
    assert MASK in one["input_ids"][hidden]
    loss = models.tiny("bert", "lm")(**one).loss
    assert loss.isfinite()


def test_workers_draw_otherwise_in_every_epoch(tokenizer):
    task = MaskedLM()
    encoded = task.encode(ROWS[:4], tokenizer)
    loader = DataLoader(
        encoded, batch_size=2, num_workers=2, collate_fn=task.collator(tokenizer), generator=torch.Generator()
    )
    epochs = [[batch["labels"].tolist() for batch in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]


def test_the_collator_in_the_trainer_of_transformers(tokenizer, tmp_path):
    task = NextSentence(max_length=24)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    encoded = task.encode(DOCUMENTS, tokenizer)
    trainer = Trainer(for_pairs(), args, data_collator=task.collator(tokenizer), train_dataset=encoded)
    assert math.isfinite(trainer.train().training_loss)


# --- names and plain data ---


@pytest.mark.parametrize("kind", PRESETS)
def test_objectives_by_name_and_back_from_plain_data(kind):
    task = objective_from({"kind": kind, "max_length": 64})
    assert task.max_length == 64
    assert task_from_json(task.to_json()) == task
    assert task.label_kind == "raw"
    assert "64 tokens" in task.describe()
    assert task.make_head(models.tiny("bert").config) is None or kind == "replaced"
    assert isinstance(task, LanguageModel) == (kind == "lm")


def test_unknown_names_are_refused():
    assert {task.name for task in OBJECTIVES} < set(PRESETS)
    assert objective_from({"kind": "wwm"}) == MaskedLM(unit="word")
    with pytest.raises(DeltatuneError, match=r"'mml', did you mean 'mlm'\?; objectives: mlm, wwm"):
        objective_from({"kind": "mml"})
    with pytest.raises(DeltatuneError, match="objective spans has no 'densty', did you mean 'density'"):
        objective_from({"kind": "spans", "densty": 0.1})
    with pytest.raises(DeltatuneError, match="wwm has no 'unit'"):
        objective_from({"kind": "wwm", "unit": "token"})


# --- three relations of passages ---


LONGER = [{"text": "\n".join(sentence for text in TEXTS for sentence in (text, text))} for _ in range(4)]


def host_of_three(method="Full()", kind="bert", seed=0):
    task = NextSentence(max_length=32, classes=3, metric="pair_accuracy")
    host = Host(models.tiny(kind, "lm"))
    host.attach("a", parse(method), head=task.make_head(host.model.config, seed))
    return host, task


@pytest.mark.parametrize("method", ["Full()", "LoRA(r=4)", "Prompt(length=2)", "Probe()"])
def test_three_relations_are_learned_with_a_head_of_their_own(method, tokenizer, tmp_path):
    host, task = host_of_three(method)
    assert host.adapters["a"].head.config.outputs == 3
    encoded = task.encode(LONGER, tokenizer)
    assert {row["pair_label"] for row in encoded} == {0, 1, 2}
    before = task.score(predict(host, "a", task, encoded, tokenizer), None)
    settings = Settings(epochs=3, batch_size=8, learning_rate=3e-3, evaluate="end")
    after = train(host, "a", task, encoded, encoded, tokenizer, settings).evaluations[-1][1]
    assert after["pair_loss"] < before["pair_loss"]
    assert set(task.metrics) == set(after)
    answers = predict(host, "a", task, encoded, tokenizer, precision="float32")
    host.save("a", tmp_path / "a", extra={"task": task.to_json()})
    other = Host(models.tiny("bert", "lm"))
    other.load(tmp_path / "a", name="a")
    assert predict(other, "a", task, encoded, tokenizer, precision="float32") == answers


def test_scores_of_three_relations_against_the_head_itself(tokenizer):
    host, task = host_of_three("LoRA(r=2)")
    encoded = task.encode(LONGER, tokenizer)
    head = host.adapters["a"].head.eval()
    losses, right = [], 0
    for row in encoded:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            state = host.model.bert(**inputs).last_hidden_state[:, 0]
            logits = head.out(torch.tanh(head.dense(state)))
        losses.append(float(F.cross_entropy(logits, torch.tensor([row["pair_label"]]))))
        right += int(logits.argmax() == row["pair_label"])
    results = task.score(predict(host, "a", task, encoded, tokenizer, precision="float32"), None)
    assert results["pair_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert results["pair_accuracy"] == right / len(encoded)


def test_three_relations_are_for_masked_models_without_bert_s_head(tokenizer):
    host, task = host_of_three("LoRA(r=2)", "distilbert")
    assert math.isfinite(
        task.score(predict(host, "a", task, task.encode(LONGER, tokenizer), tokenizer), None)["pair_loss"]
    )
    assert task.loads == "mask"
    assert NextSentence().loads == "pairs"
    assert NextSentence().make_head(models.tiny("bert").config) is None
    with pytest.raises(DeltatuneError, match="deltatune pretrain"):
        task.collator(tokenizer)
    with pytest.raises(DeltatuneError, match="classes"):
        NextSentence(classes=4)


def test_objectives_stored_before_there_were_three_relations_have_two():
    stored = NextSentence(max_length=24).to_json()
    del stored["classes"]
    assert task_from_json(stored) == NextSentence(max_length=24)
    three = NextSentence(classes=3)
    assert task_from_json(three.to_json()) == three
    assert objective_from({"kind": "nsp", "classes": 3}).classes == 3
