"""In-context learning: which rows are shown and how, calibration, orders, nearest rows, and what is stored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, parse
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.in_context.content_free import CONTENT_FREE
from deltatune.prompting.in_context.demonstrations import split_at_text, with_label_first
from deltatune.prompting.in_context.in_context_learning import ICL
from deltatune.prompting.prompt_method import PromptRows, with_stored_task
from deltatune.prompting.zero_shot import Cloze
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS
from deltatune.tasks.label_words.nearest_demonstrations import NearestDemonstrations
from deltatune.training import Settings
from deltatune.training.inference.text_vectors import text_vectors
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models

TASK = Classify(labels=("neg", "pos"), max_length=24)
TRAIN = [
    {"text": text, "label": label}
    for text, label in (
        ("good film", "pos"),
        ("bad plot", "neg"),
        ("great actor", "pos"),
        ("awful film", "neg"),
        ("the plot is good", "pos"),
        ("it was not good", "neg"),
        ("very great", "pos"),
        ("very bad", "neg"),
    )
]
TEST = [{"text": "this film is great", "label": "pos"}, {"text": "the actor was awful", "label": "neg"}]
OPTIONS = PromptOptions(template="{text} it was {mask}", words=("neg=bad", "pos=good"))


def opened(kind, folder, seed=0):
    tokenizer = models.tiny_tokenizer()
    if kind == "t5":
        tokenizer.mask_token = None
        tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    torch.manual_seed(seed)
    model = models.tiny(kind, "lm")
    if kind == "t5":
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    host, tokenizer = open_host(str(folder / kind), "words")
    return Session(str(folder / kind), host, tokenizer, TASK, precision="float32")


@pytest.fixture(params=["bert", "gpt2", "llama", "t5"])
def session(request, tmp_path):
    return opened(request.param, tmp_path)


@pytest.fixture
def llama(tmp_path):
    return opened("llama", tmp_path)


def fit(session, method, train=TRAIN, validation=(), seed=0, options=OPTIONS):
    return parse(method).fit(session, PromptRows(train, validation), Settings(seed=seed), options)


def classes_shown(task, number=0):
    return ["pos" if shown.endswith("good") else "neg" for shown in task.demonstrations[number]]


# ---- which rows, and how


@pytest.mark.parametrize(("shots", "counts"), [(1, {0, 1}), (2, {1}), (3, {1, 2}), (4, {2}), (8, {4})])
def test_shots_are_all_demonstrations_and_classes_are_in_balance(llama, shots, counts):
    task = fit(llama, f"ICL(shots={shots})").session.task
    shown = task.demonstrations[0]
    assert len(shown) == len(set(shown)) == shots
    assert set(shown) <= {f"{row['text']} it was {'good' if row['label'] == 'pos' else 'bad'}" for row in TRAIN}
    assert {classes_shown(task).count(label) for label in TASK.labels} == counts


def test_classes_without_a_demonstration_are_named(llama):
    (note,) = (note for note in fit(llama, "ICL(shots=1)").notes if "in no demonstration" in note)
    assert note.startswith("1 of 2 classes are in no demonstration: ")
    assert note.endswith("; shots=2 shows one of each")
    llama.detach()
    assert not any("in no demonstration" in note for note in fit(llama, "ICL(shots=2)").notes)


def test_the_seed_draws_and_nothing_else_does(llama):
    first = fit(llama, "ICL(shots=4)", seed=1).session
    first.detach()
    torch.manual_seed(5)
    again = fit(llama, "ICL(shots=4)", seed=1).session
    again.detach()
    other = fit(llama, "ICL(shots=4)", seed=2).session
    assert first.task == again.task
    assert first.task.demonstrations != other.task.demonstrations


def test_orders(llama):
    def shown(order):
        session = fit(llama, f"ICL(shots=6, order='{order}')").session
        session.detach()
        return session.task

    texts = [row["text"] for row in TRAIN]
    given = [each.removesuffix(" it was good").removesuffix(" it was bad") for each in shown("given").demonstrations[0]]
    assert [texts.index(text) for text in given] == sorted(texts.index(text) for text in given)
    assert classes_shown(shown("by-class")) == ["neg"] * 3 + ["pos"] * 3
    assert sorted(shown("random").demonstrations[0]) == sorted(shown("by-class").demonstrations[0])


def test_ablations_of_labels_and_format(llama):
    def shown(**options):
        session = fit(llama, repr(ICL(shots=8, **options))).session
        session.detach()
        return session.task.demonstrations[0]

    gold = shown()
    assert all(text.split(" it was ")[0] for text in gold)
    none = shown(labels="none")
    assert sorted(none) == sorted(row["text"] for row in TRAIN)
    assert sorted(shown(labels="only")) == ["bad"] * 4 + ["good"] * 4
    random = shown(labels="random")
    assert [text.split(" it was ")[0] for text in random] == [text.split(" it was ")[0] for text in gold]
    assert random != gold
    assert all(text.startswith(("good: ", "bad: ")) for text in shown(format="{mask}: {text}"))


def test_a_separator_within_a_text_does_not_part_demonstrations(llama):
    rows = [{**row, "text": f"{row['text']}\n\nagain"} for row in TRAIN]
    task = fit(llama, "ICL(shots=4)", rows).session.task
    assert not any("\n\n" in shown for shown in task.demonstrations[0])


def test_rows_without_a_text_or_a_class_are_never_shown(llama):
    rows = [{"text": " ", "label": "pos"}, {"text": "good", "label": "other"}, *TRAIN]
    fitted = fit(llama, "ICL(shots=8)", rows)
    assert len(fitted.session.task.demonstrations[0]) == 8
    assert "2 training rows" in fitted.notes[0]


def test_long_demonstrations_are_cut_and_keep_their_answers(llama):
    rows = [{**row, "text": " ".join([row["text"]] * 20)} for row in TRAIN]
    task = fit(llama, "ICL(shots=2, length=12)", rows).session.task
    for shown in task.demonstrations[0]:
        assert shown.endswith((" it was good", " it was bad"))
        assert len(llama.tokenizer(shown, add_special_tokens=False)["input_ids"]) <= 12


# ---- calibration


def preferred(scores):
    """log p_cf of log-probabilities of words (K, C): their mean, normalised."""
    mean = scores.exp().mean(0)
    return (mean / mean.sum()).log()


def test_calibration_divides_by_the_answers_to_texts_without_content(session):
    task = fit(session, "ICL(shots=4)").session.task
    session.detach()
    plain = fit(session, "ICL(shots=4, calibration='none')").session
    assert plain.task.demonstrations == task.demonstrations
    rows = [{"text": text} for text in CONTENT_FREE]
    logits = torch.from_numpy(plain.predict(plain.encode(rows, labelled=False)))
    wanted = -preferred(logits)
    torch.testing.assert_close(torch.tensor(task.calibration[0]), wanted, atol=1e-4, rtol=1e-4)


def test_each_set_has_its_own_calibration_and_the_answers_are_averaged(llama):
    fitted = fit(llama, "ICL(shots=2, sets=3)", validation=TEST)
    task = fitted.session.task
    assert len(task.demonstrations) == len(task.calibration) == 3
    assert len(set(task.calibration)) > 1
    assert [name for name, _ in fitted.trials] == ["set 1", "set 2", "set 3"]
    means = np.exp(fitted.session.predict(TEST))
    singles = []
    for shown, calibration in zip(task.demonstrations, task.calibration, strict=True):
        own = replace(fitted.session, task=replace(task, demonstrations=(shown,), calibration=(calibration,)))
        singles.append(torch.from_numpy(own.predict(TEST)).softmax(-1).numpy())
    np.testing.assert_allclose(means, np.mean(singles, 0), atol=1e-5)


def test_pairs_have_no_content_in_every_column(llama):
    pairs = [{"a": row["text"], "b": "film", "label": row["label"]} for row in TRAIN]
    session = replace(llama, task=Classify(labels=TASK.labels, text=("a", "b"), max_length=24))
    options = PromptOptions(template="{a} and {b} is {mask}", words=OPTIONS.words)
    task = fit(session, "ICL(shots=2)", pairs, options=options).session.task
    assert np.isfinite(task.calibration).all()
    assert all(" and film is " in shown for shown in task.demonstrations[0])


# ---- search over orders


def test_the_best_order_on_the_validation_rows_is_kept(llama):
    fitted = fit(llama, "ICL(shots=4, order='search', orders=5)", validation=TRAIN + TEST)
    assert len(fitted.trials) == 5
    best = max(score for _, score in fitted.trials)
    assert fitted.session.score(fitted.session.encode(TRAIN + TEST))["accuracy"] == pytest.approx(best)
    assert "5 sets or orders of demonstrations on 10 validation rows" in fitted.notes[-1]


def test_few_demonstrations_have_few_orders(llama):
    assert len(fit(llama, "ICL(shots=2, order='search', orders=50)", validation=TEST).trials) == 2


# ---- nearest


def test_each_text_gets_the_nearest_rows_but_never_itself(session):
    fitted = fit(session, "ICL(shots=3, select='nearest', calibration='none')")
    task, own = fitted.session.task, fitted.session
    assert isinstance(task, NearestDemonstrations)
    assert len(task.pool) == len(TRAIN)
    encoded = own.encode(TRAIN)
    for row, token_row in zip(TRAIN, encoded, strict=True):
        text = own.tokenizer.decode(token_row["prompt"])
        assert text.count(row["text"]) <= 1 + sum(row["text"] in other["text"] for other in TRAIN if other != row)
    same = [{"text": "  GOOD film "}]
    shown = task.with_demonstrations(same, lambda texts, keep: np.eye(len(TRAIN))[: len(texts)])[0][DEMONSTRATIONS][0]
    assert "good film it was good" not in shown


def test_the_nearest_comes_last_or_first(llama):
    def vectors(texts, keep):
        places = {row["text"]: i for i, row in enumerate(TRAIN)}
        angles = np.asarray([0.1 * places.get(text, -1) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    for order, wanted in (("nearest-last", [2, 1, 0]), ("nearest-first", [0, 1, 2])):
        task = fit(llama, f"ICL(shots=3, select='nearest', order='{order}')").session.task
        llama.detach()
        (row,) = task.with_demonstrations([{"text": "other"}], vectors)
        assert [shown.split(" it was ")[0] for shown in row[DEMONSTRATIONS][0]] == [TRAIN[i]["text"] for i in wanted]


def test_calibration_of_each_row_is_that_of_its_own_demonstrations(llama):
    own = fit(llama, "ICL(shots=3, select='nearest')").session
    answers = own.predict(TEST)
    plain = replace(own, task=replace(own.task, content_free=()))
    rows = [dict(row) for row in plain.task.with_demonstrations(TEST, _vectors(plain))]
    for row, answer in zip(rows, answers, strict=True):
        versions = [row, *({**row, "text": text} for text in CONTENT_FREE)]
        logits = torch.from_numpy(plain.predict(plain.encode(versions, labelled=False)))
        wanted = logits[0] - preferred(logits[1:])
        torch.testing.assert_close(torch.from_numpy(answer), wanted, atol=1e-4, rtol=1e-4)


def _vectors(session):
    return lambda texts, keep: text_vectors(session.host, session.tokenizer, texts, "", keep)


# ---- stored and opened again


@pytest.mark.parametrize("method", ["ICL(shots=2, sets=2)", "ICL(shots=2, select='nearest')"])
def test_what_is_found_is_an_adapter_folder_without_tensors(session, tmp_path, method):
    fitted = fit(session, method, validation=TEST)
    answers = fitted.session.predict(TEST)
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "prompt")
    again = open_adapter(tmp_path / "prompt")
    assert again.adapter.count == 0
    assert again.adapter.method == parse(method)
    assert again.task == fitted.session.task
    np.testing.assert_allclose(replace(again, precision="float32").predict(TEST), answers, atol=1e-5)
    known = again.adapter.trained_rows
    assert known is not None
    assert len(known.train) == (8 if "nearest" in method else len(set(sum(fitted.session.task.demonstrations, ()))))


def test_a_trained_adapter_reads_the_prompt(llama, tmp_path):
    settings = Settings(epochs=2, batch_size=4, learning_rate=1e-2)
    trained = Cloze(parse("LoRA(r=2)")).fit(llama, PromptRows(TRAIN), settings, OPTIONS).session
    with_stored_task(trained)
    llama.host.save(llama.name, tmp_path / "trained")
    llama.detach()
    plain = fit(llama, "ICL(shots=2, calibration='none')").session
    before = plain.predict(TEST)
    plain.detach()
    adapted = fit(llama, f"ICL(shots=2, calibration='none', adapter='{tmp_path / 'trained'}')").session
    assert adapted.adapter.count > 0
    assert adapted.task.demonstrations == plain.task.demonstrations
    assert np.abs(adapted.predict(TEST) - before).max() > 1e-3
    assert len(adapted.adapter.trained_rows.train) == len(TRAIN)


# ---- room


def test_rows_without_room_lose_the_oldest_demonstrations_and_are_counted(llama):
    long = [{"text": " ".join(["good"] * n), "label": "pos"} for n in (3, 90, 100)]
    rows = [{**row, "text": " ".join([row["text"]] * 8)} for row in TRAIN]
    fitted = fit(llama, "ICL(shots=4, order='given')", rows, validation=long)
    encoded = fitted.session.encode(long)
    assert "2 of 3 rows" in fitted.notes[-1]
    assert "2 of 3 rows have no room for all of their demonstrations" in encoded.notes[0]
    assert encoded.truncated == 0
    last = fitted.session.task.demonstrations[0][-1]
    for row, token_row in zip(long, encoded, strict=True):
        text = llama.tokenizer.decode(token_row["prompt"])
        assert row["text"] in text
        assert last.split(" it was")[0] in text or len(row["text"]) > 400


# ---- channel


def test_rows_are_counted_and_named_as_they_are_given_beside_their_inputs_without_content(session):
    found = fit(session, "ICL(shots=2, select='nearest')").session
    with pytest.raises(DeltatuneError) as wrong:
        found.encode([*TEST, {"text": "bad", "label": "worse"}])
    assert "row 2: 'worse'" in str(wrong.value)
    assert "row 3" not in str(wrong.value)
    with pytest.raises(DeltatuneError, match="row 1: text is None"):
        found.encode([TEST[0], {"text": None, "label": "pos"}])
    narrow = replace(found, task=replace(found.task, max_length=14))
    plain = replace(narrow, task=replace(narrow.task, content_free=()))
    assert "of 10 rows" in narrow.encode(TRAIN + TEST).notes[0]
    assert narrow.encode(TRAIN + TEST).notes == plain.encode(TRAIN + TEST).notes


def test_channel_scores_the_text_behind_the_word(llama):
    fitted = fit(llama, "ICL(shots=2, scoring='channel')")
    task, model = fitted.session.task, llama.host.model
    assert task.template == "it was {mask}\n{text}"
    assert not task.calibration
    lead = "".join(f"{shown}\n\n" for shown in task.demonstrations[0])
    answers = fitted.session.predict(TEST)
    special = llama.tokenizer("a")["input_ids"][:1]
    for row, answer in zip(TEST, answers, strict=True):
        for word, score in zip(("bad", "good"), answer, strict=True):
            ids = llama.tokenizer(f"{lead}it was {word}", add_special_tokens=False)["input_ids"]
            text = llama.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([[*special, *ids, *text]])).logits[0].log_softmax(-1)
            start = len(special) + len(ids)
            scores = [logits[start + i - 1, token] for i, token in enumerate(text)]
            assert float(score) == pytest.approx(float(sum(scores) / len(scores)), abs=1e-4)


@pytest.mark.parametrize(
    ("template", "first"),
    [
        ("{text} It was {mask}.", "It was {mask}.\n{text}"),
        ("Review: {text}\nSentiment: {mask}", "Sentiment: {mask}\nReview: {text}"),
        ("{mask}: {text}", "{mask}: {text}"),
        ("{a}? {mask}, {b}", "{a}? {mask}, {b}"),
        ("{a:stem}\nQ: {b!}? A: {mask}", "? A: {mask}\n{a:stem}\nQ: {b!}"),
    ],
)
def test_a_template_with_its_label_first(template, first):
    assert with_label_first(template) == first


def test_the_text_of_a_template():
    assert split_at_text("{text} It was {mask}.") == ("{text}", " It was {mask}.")
    assert split_at_text("{mask}: {a}, {b}!") == (": {a}, {b}", "!")


# ---- what cannot be


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ICL(shots=9)", "9 demonstrations in all are asked for, and 8 training rows can be shown"),
        ("ICL(shots=8, select='nearest')", "there must be more"),
        ("ICL(order='search')", "needs validation rows"),
        ("ICL(format='{text}')", "one {mask}"),
        ("ICL(format='{title} {mask}')", "'title'"),
        ("ICL(template='{3} {text} {mask}')", "virtual tokens"),
        ("ICL(length=3)", "without its texts"),
        ("ICL(adapter='/nowhere/at/all')", "nowhere"),
        ("ICL(scoring='channel', format='{text} {mask}', words='neg=bad, pos=bad')", "'bad'"),
    ],
)
def test_errors_name_the_problem_and_leave_no_adapter(llama, method, message):
    with pytest.raises(DeltatuneError, match=message.replace("{", r"\{").replace("}", r"\}")):
        fit(llama, method)
    assert not llama.host.adapters


@pytest.mark.parametrize(
    "method",
    [
        "ICL(shots=0)", "ICL(order='nearest-last')", "ICL(select='nearest', order='search')",
        "ICL(select='nearest', sets=2)", "ICL(encoder='x')", "ICL(select='nearest', pool=4)", "ICL(labels='no')",
        "ICL(format='')", "ICL(sets=1000000000)", "ICL(order='search', orders=1000000000)",
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(method):
    with pytest.raises(DeltatuneError):
        parse(method)


def test_a_class_with_too_few_rows_is_named(llama):
    rows = [row for row in TRAIN if row["label"] == "pos"] + TRAIN[1:2]
    with pytest.raises(DeltatuneError, match=r"the class 'neg' has 1 training rows.*2 are needed"):
        fit(llama, "ICL(shots=4)", rows)
    assert len(fit(llama, "ICL(shots=3)", rows).session.task.demonstrations[0]) == 3


def test_channel_is_for_left_to_right_models(tmp_path):
    session = opened("bert", tmp_path)
    with pytest.raises(DeltatuneError, match="left-to-right"):
        fit(session, "ICL(shots=2, scoring='channel')")
    assert not session.host.adapters


def test_zero_shot_answers_are_those_without_demonstrations(llama):
    zero = fit(llama, "ZeroShot()").session
    plain = zero.predict(TEST)
    zero.detach()
    shown = fit(llama, "ICL(shots=2, calibration='none')").session.predict(TEST)
    assert np.abs(plain - shown).max() > 1e-4


def test_what_can_be_known_before_it_runs(llama):
    method = parse("ICL(shots=20)")
    with pytest.raises(DeltatuneError, match="20 demonstrations"):
        method.check_session(llama, PromptRows(TRAIN), OPTIONS)
    parse("ICL(shots=2, select='nearest')").check_session(llama, PromptRows(TRAIN), OPTIONS)
    assert not llama.host.adapters
