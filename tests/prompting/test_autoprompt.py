"""AutoPrompt: gradients, candidates, the search and what it leaves behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, parse
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_cost import counted
from deltatune.prompting.prompt_method import PromptRows, attach_prompt, with_stored_task
from deltatune.prompting.prompt_search.autoprompt import AutoPrompt
from deltatune.prompting.prompt_search.blank_readings import read_blanks
from deltatune.prompting.prompt_search.label_word_search import fit_classifier, label_token_scores
from deltatune.prompting.prompt_search.trigger_gradients import (
    TriggerRows,
    allowed_tokens,
    candidate_tokens,
    first_order_scores,
    with_triggers,
)
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.prompts.templates import Template
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import label_words, models
from support.golden_cases import close, tensors
from support.golden_prompting import golden_session, settings

ROWS = [
    {"text": text, "label": label}
    for text, label in (
        ("good great film", "pos"),
        ("bad awful plot", "neg"),
        ("the actor is great and very good", "pos"),
        ("the plot was awful", "neg"),
    )
]
OPTIONS = PromptOptions(words=("neg=bad", "pos=good"))
TASK = Classify(labels=("neg", "pos"), max_length=32)
SHORT = AutoPrompt(triggers=2, candidates=4, iterations=4)


def session_of(kind, folder, **config):
    models.tiny(kind, "lm", dropout=False, **config).save_pretrained(folder)
    tokenizer = models.tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "words")
    return Session(str(folder), host, tokenizer, TASK, precision="float32")


@pytest.fixture(params=["bert", "gpt2", "llama", "bart"])
def session(request, tmp_path):
    return session_of(request.param, tmp_path / "model")


def prompted(session, triggers):
    template = AutoPrompt().template_for(session, TASK)
    ending = "{mask}" if template.endswith("{mask}") else "{mask} ."
    task = LabelWords(
        labels=TASK.labels,
        words=(("bad",), ("good",)),
        template="{text} " + ending,
        scoring="probability",
        max_length=32,
    )
    own = attach_prompt(session, AutoPrompt(), with_triggers(task, template, triggers))
    return own, TriggerRows(own, task, template, len(triggers), ROWS), template, task


def test_gradients_are_those_of_the_vectors_of_the_triggers(session):
    own, rows, _, _ = prompted(session, [7, 8, 9])
    head = own.host.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # no longer the input's table
    batch, triggers = rows.batch(range(4)), torch.tensor([7, 8, 9])
    with own.host.using(own.name, training=False):
        gradients, loss = rows.gradients([batch], triggers)
        scores = rows.scores(batch, triggers)
        assert loss == pytest.approx(float(-scores[range(4), batch.labels].mean()), rel=1e-5)
        total = sum(gradients.values())
        # finite differences: token 20 has its row of the table alone, so moving that row moves one trigger
        table = own.host.model.get_input_embeddings().weight.data
        saved = table[20].clone()
        for place in (0, 2):
            changed = triggers.clone()
            changed[place] = 20
            table[20] = table[triggers[place]]
            direction = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(place))
            losses = []
            for step in (1e-3, -1e-3):
                table[20] = table[triggers[place]] + step * direction
                scores = rows.scores(batch, changed)
                losses.append(float(-scores[range(4), batch.labels].double().mean()))
            table[20] = saved
            slope = (losses[0] - losses[1]) / 2e-3
            scale = float(getattr(own.host.model.get_submodule(next(iter(gradients))), "embed_scale", 1.0))
            assert scale * float(total[place] @ direction) == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_first_order_scores_are_vectors_times_gradients(tmp_path):
    session = session_of("bert", tmp_path / "model")
    own, rows, _, _ = prompted(session, [7, 8, 9])
    with own.host.using(own.name, training=False):
        gradients, _ = rows.gradients([rows.batch(range(4))], torch.tensor([7, 8, 9]))
    table = own.host.model.get_input_embeddings().weight
    by_hand = -(table @ sum(gradients.values())[1])
    scores = first_order_scores(own.host, gradients, 1, len(table))
    assert torch.allclose(scores, by_hand, atol=1e-6)
    allowed = allowed_tokens(len(table), {int(by_hand.argmax())}, scores.device)
    expected = by_hand.masked_fill(~allowed, -torch.inf).topk(5).indices.tolist()
    assert candidate_tokens(own.host, gradients, 1, allowed, 5) == expected


def test_exchanged_triggers_are_those_of_a_new_encoding(session):
    own, rows, template, task = prompted(session, [7, 8, 9])
    with own.host.using(own.name, training=False), torch.no_grad():
        scores = rows.scores(rows.batch(range(4)), torch.tensor([11, 12, 6]))
    again = replace(own, task=with_triggers(task, template, [11, 12, 6]))
    assert np.allclose(again.predict(ROWS), scores.numpy(), atol=1e-5)


def test_found_triggers_survive_their_folder(session, tmp_path):
    before = {name: tensor.clone() for name, tensor in session.host.model.state_dict().items()}
    fitted = SHORT.fit(session, PromptRows(ROWS * 2, ROWS), Settings(), OPTIONS)
    answers = fitted.session.predict(ROWS)
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "prompt")
    again = replace(open_adapter(tmp_path / "prompt"), precision="float32")
    assert again.adapter.count == 0
    assert again.adapter.method == SHORT
    assert again.task.template == fitted.session.task.template
    (ids,) = [part.ids for part in Template(again.task.template).parts if part.kind == "ids"]
    assert len(ids) == 2
    encoded = again.encode(ROWS)
    assert all(f" {ids[0]}, {ids[1]}" in str(row["input_ids"]) for row in encoded)
    assert np.array_equal(again.predict(ROWS), answers)
    session.detach()
    assert all(torch.equal(before[name], tensor) for name, tensor in session.host.model.state_dict().items())
    assert len(fitted.trials) >= 1
    assert max(score for _, score in fitted.trials) == pytest.approx(float((answers.argmax(1) == [1, 0, 1, 0]).mean()))


@pytest.mark.parametrize("kind", ["t5", "roberta"])
def test_triggers_of_other_tokenizers_come_back_as_their_ids(kind, tmp_path):
    model, tokenizer = label_words.reader(kind)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    host, tokenizer = open_host(str(tmp_path / "model"), "words")
    session = Session(str(tmp_path / "model"), host, tokenizer, replace(TASK, max_length=60), precision="float32")
    texts = [
        {"text": text, "label": label} for text, label in zip(label_words.TEXTS, ("pos", "neg", "pos"), strict=True)
    ]
    words = PromptOptions(words=("neg=writer", "pos=film"))
    fitted = AutoPrompt(triggers=3, candidates=3, iterations=3).fit(session, PromptRows(texts), Settings(), words)
    (ids,) = [part.ids for part in Template(fitted.session.task.template).parts if part.kind == "ids"]
    before = fitted.session.predict(texts)
    with_stored_task(fitted.session)
    host.save(session.name, tmp_path / "prompt")
    again = replace(open_adapter(tmp_path / "prompt"), precision="float32")
    assert all(", ".join(map(str, ids)) in str(row["input_ids"]) for row in again.encode(texts))
    assert np.allclose(again.predict(texts), before, atol=1e-5)


def test_the_search_depends_on_the_seed_alone_and_raises_the_likelihood(tmp_path):
    session = session_of("bert", tmp_path / "model")

    def found(seed):
        torch.manual_seed(seed * 7 + 1)
        fitted = AutoPrompt(triggers=2, candidates=6, iterations=6, batch_size=3).fit(
            session, PromptRows(ROWS * 2), Settings(seed=seed), OPTIONS
        )
        answers = fitted.session.predict(ROWS)
        session.detach()
        return fitted, answers

    first, second = found(3), found(3)
    assert first[0].prompts == second[0].prompts
    assert first[0].trials == second[0].trials
    assert np.array_equal(first[1], second[1])
    assert "training rows" in first[0].notes[0]
    start = AutoPrompt(triggers=2, iterations=0).fit(session, PromptRows(ROWS), Settings(), OPTIONS)
    labels = [1, 0, 1, 0]
    assert first[1][range(4), labels].sum() > start.session.predict(ROWS)[range(4), labels].sum()


def test_a_batch_of_all_rows_is_read_once_however_many_are_summed(tmp_path):
    session = session_of("bert", tmp_path / "model")
    found = []
    for accumulation in (1, 7):
        method = replace(SHORT, accumulation=accumulation)
        with counted(session.host) as cost:
            fitted = method.fit(session, PromptRows(ROWS, ROWS), Settings(), OPTIONS)
        fitted.session.detach()
        found.append((fitted.trials, cost.passes))
    assert found[0] == found[1]


def test_no_row_but_those_given_is_read(tmp_path):
    class Poisoned(dict):
        def __getitem__(self, name):
            raise AssertionError("a test row was read")

    session = session_of("bert", tmp_path / "model")
    fitted = SHORT.fit(session, PromptRows(ROWS, ROWS, [Poisoned(text="x")]), Settings(), OPTIONS)
    assert fitted.prompts


def test_a_template_of_the_run_gets_its_triggers_before_the_blank(tmp_path):
    session = session_of("bert", tmp_path / "model")
    given = replace(OPTIONS, template="{text} is {mask} !")
    assert AutoPrompt().template_for(session, TASK, given) == "{text} is {triggers} {mask} !"
    placed = replace(given, template="{triggers} {text} {mask}")
    assert AutoPrompt().template_for(session, TASK, placed) == placed.template
    with pytest.raises(DeltatuneError, match=r"one \{mask\}"):
        AutoPrompt().fit(session, PromptRows(ROWS), Settings(), replace(OPTIONS, template="{text} is {mask} {mask}"))
    fitted = AutoPrompt(iterations=0).fit(session, PromptRows(ROWS), Settings(), given)
    assert fitted.session.task.template == "{text} is {ids:4 4 4} {mask} !"


def test_label_tokens_separate_the_classes(tmp_path):
    session = session_of("bert", tmp_path / "model")
    numbers = Session(session.model, session.host, session.tokenizer, Classify(labels=("0", "1"), max_length=32))
    rows = [{**row, "label": "1" if row["label"] == "pos" else "0"} for row in ROWS]
    method = parse("AutoPrompt(triggers=2, iterations=2, label_tokens=3)")
    fitted = method.fit(numbers, PromptRows(rows * 2, rows), Settings())
    words = fitted.session.task.words
    assert [len(of_class) for of_class in words] == [3, 3]
    assert not set(words[0]) & set(words[1])
    assert fitted.session.task.scoring == "probability"


def test_label_token_scores_are_a_softmax_over_the_classes():
    generator = torch.Generator().manual_seed(0)
    weights, vectors = torch.randn(3, 5, generator=generator), torch.randn(7, 5, generator=generator)
    by_hand = torch.tensor([[float(w @ v) for v in vectors] for w in weights]).softmax(0)
    assert torch.allclose(label_token_scores(weights, vectors).exp().float(), by_hand, atol=1e-6)
    states = torch.cat([torch.eye(5)[:2]] * 4)
    fitted = fit_classifier(states, torch.tensor([0, 1] * 4), 2)
    assert (states @ fitted.T).argmax(1).tolist() == [0, 1] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AutoPrompt(triggers=0)", "triggers must be at least 1"),
        ("AutoPrompt(candidates=0)", "candidates must be at least 1"),
        ("AutoPrompt(triggers=1000000000)", "triggers must be at most 1000"),
        ("AutoPrompt(accumulation=1000000000)", "accumulation must be at most 1000"),
        ("AutoPrompt(template='{text} {mask}')", "has {triggers} once"),
        ("AutoPrompt(template='{triggers} {text} {triggers} {mask}')", "has {triggers} once"),
        ("AutoPrompt(label_tokens=2, words='a=b, c=d')", "leave words out"),
    ],
)
def test_options_that_cannot_be(text, message):
    with pytest.raises(DeltatuneError, match=message):
        parse(text)


def test_what_cannot_be_searched_is_a_plain_error_and_leaves_nothing(tmp_path):
    session = session_of("gpt2", tmp_path / "model")
    for method, rows, message in (
        (AutoPrompt(template="{text} {mask} {triggers}"), ROWS, "reads only what is before it"),
        (AutoPrompt(), ROWS[::2], "no training row has the class 'neg'"),
        (AutoPrompt(), [], "no training row has the classes"),
        (AutoPrompt(label_tokens=60), ROWS, "of one token; ask for fewer"),
        (AutoPrompt(template="{txt} {triggers} {mask}"), ROWS, "did you mean 'text'"),
    ):
        with pytest.raises(DeltatuneError, match=message):
            method.fit(session, PromptRows(rows), Settings(), OPTIONS)
        assert not session.host.adapters
    regression = Session(session.model, session.host, session.tokenizer, Classify())
    with pytest.raises(DeltatuneError, match="one class a row"):
        AutoPrompt().fit(regression, PromptRows(ROWS), Settings(), OPTIONS)


def test_ids_in_a_template_are_read_as_they_are_and_checked():
    tokenizer = models.tiny_tokenizer()
    template = Template("{text} {ids:7 8} {mask}")
    assert template.render({"text": "good"}, tokenizer, 101).input_ids == [1, 5, 7, 8, 4, 2]
    for text, message in (("{text} {ids:} {mask}", "write numbers"), ("{text} {ids:-3} {mask}", "write numbers")):
        with pytest.raises(DeltatuneError, match=message):
            Template(text)
    with pytest.raises(DeltatuneError, match="token id 900"):
        Template("{text} {ids:900} {mask}").render({"text": "good"}, tokenizer, 101)
    with pytest.raises(DeltatuneError, match="which no text can show"):
        template.fill({"text": "good"}, "bad")


# ---- the numbers of the paper's code


def golden_triggers():
    facts = settings("prompting_autoprompt")
    words = tuple(tuple(of_class) for of_class in facts["label_words"].values())
    task = LabelWords(
        labels=tuple(facts["label_words"]),
        words=words,
        template="{text} {mask} .",
        scoring="probability",
        max_length=24,
    )
    session = golden_session("prompting_bert", task)
    labelled = zip(facts["texts"], facts["labels"], strict=True)
    rows = [{"text": text, "label": str(label)} for text, label in labelled]
    return session, task, rows, session.tokenizer.convert_tokens_to_ids(facts["trigger"])


def test_gradients_candidates_and_their_scores_are_those_of_the_papers_code():
    case, facts = tensors("prompting_autoprompt"), settings("prompting_autoprompt")
    session, task, rows, start = golden_triggers()
    made = TriggerRows(session, task, "{text} {triggers} {mask} .", 3, rows)
    batches, triggers = [made.batch(range(3)), made.batch(range(3, 6))], torch.tensor(start)
    vocabulary = session.host.sites.facts.vocabulary
    with session.host.using(session.name, training=False):
        for number, batch in enumerate(batches):
            scores = made.scores(batch, triggers)
            row_losses = -scores.gather(1, batch.labels[:, None])[:, 0]
            close(row_losses, case[f"output.batch{number}.row_losses"])
        gradients, _ = made.gradients(batches, triggers)
        close(sum(gradients.values()), case["output.gradient"])
        kept = torch.ones(vocabulary, dtype=torch.bool)
        filtered = case["input.filter"] == 0
        for place in range(3):
            found = candidate_tokens(session.host, gradients, place, kept, facts["num_cand"])
            assert found == case[f"output.candidates_{place}"].tolist()
            theirs = [token for token in case[f"output.filtered_{place}"].tolist() if filtered[token]]
            assert candidate_tokens(session.host, gradients, place, filtered, len(theirs)) == theirs
            for token, loss, right in zip(
                found, case[f"output.loss_{place}"], case[f"output.accuracy_{place}"], strict=True
            ):
                changed = triggers.clone()
                changed[place] = token
                scores = torch.cat([made.scores(batch, changed) for batch in batches])
                labels = torch.cat([batch.labels for batch in batches])
                close(scores.gather(1, labels[:, None]).sum().abs(), loss.abs())
                assert float((scores.argmax(1) == labels).sum()) == pytest.approx(float(right))


def test_label_words_of_a_classifier_are_those_of_the_papers_code():
    case, facts = tensors("prompting_autoprompt"), settings("prompting_autoprompt")
    session, task, rows, _ = golden_triggers()
    mask = session.tokenizer.mask_token_id
    blank = with_triggers(task, "{text} {triggers} {mask} .", [mask] * 3)
    states = read_blanks(session, replace(blank, words=(("bad",), ("good",))), rows, [0]).states
    close(states, case["output.states"])
    vectors = session.host.model.get_output_embeddings().weight.detach()
    scores = label_token_scores(case["adapter.weight"], vectors)
    close(scores.exp().float(), case["output.label_scores"])
    assert scores.topk(facts["k"]).indices.tolist() == case["output.label_top"].tolist()
