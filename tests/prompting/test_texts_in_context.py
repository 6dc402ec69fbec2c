"""Prompts for texts as answers: ZeroShot and ICL write, end at the separator, and are stored with what they show."""

from dataclasses import replace

import pytest

from deltatune import DeltatuneError, parse
from deltatune.data import Data
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint
from deltatune.prompting.in_context.in_context_learning import ICL
from deltatune.prompting.prompt_method import PromptRows, with_stored_task
from deltatune.prompting.prompt_search.template_search import TemplateSearch
from deltatune.prompting.server_session import server_session
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models
from support.language_models import generation_tokenizer, make_rows

ROWS = [{**row, "input": f"{row['input']} {i}"} for i, row in enumerate(make_rows(12, longest=4))]
ROOMY = PromptRows(ROWS[:8], ROWS[8:10])
TEMPLATE = "film: {input} is"


def session_of(kind, folder, **fields):
    models.tiny(kind, "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "text")
    task = Generate(new_tokens=6, max_length=40, **fields)
    return Session(str(folder), host, tokenizer, task, precision="float32")


@pytest.fixture(params=["llama", "t5"])
def session(request, tmp_path):
    return session_of(request.param, tmp_path / "model")


@pytest.fixture
def decoder(tmp_path):
    return session_of("llama", tmp_path / "model")


@pytest.mark.parametrize(
    "method",
    [ZeroShot(template=TEMPLATE, stop="\n"), ICL(shots=2), ICL(shots=2, select="nearest", template=TEMPLATE)],
)
def test_a_prompt_is_scored_stored_and_opened_again(session, tmp_path, method):
    method.check_session(session, ROOMY)
    assert session.name not in session.host.adapters
    fitted = method.fit(session, ROOMY, Settings(seed=1))
    task = fitted.session.task
    encoded = fitted.session.encode(ROWS[10:])
    answers = fitted.session.predict(encoded)
    assert {"rougeL", "bleu", "perplexity"} <= set(fitted.session.score(encoded))
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "prompt")
    again = replace(open_adapter(tmp_path / "prompt"), precision="float32")
    assert (again.task, again.adapter.count, again.adapter.method) == (task, 0, method)
    plain = [{"input": row["input"]} for row in ROWS[10:]]
    assert again.task.decode(again.predict(plain)) == task.decode(answers)


def test_what_the_model_reads_is_the_demonstrations_and_the_row(decoder):
    fitted = ICL(shots=2, order="given", template="film: {input} is ").fit(decoder, ROOMY, Settings())
    found, task = fitted.session, fitted.session.task
    shown = [row for row in ROWS[:8] if any(row["output"] == answer for _, answer in task.demonstrations)]
    first, second = shown
    text = (
        f"film: {first['input']} is {first['output']}\n\nfilm: {second['input']} is {second['output']}\n\n"
        f"film: {ROWS[9]['input']} is"
    )
    assert task.prompt_of(ROWS[9]) == text
    tokenizer = found.tokenizer
    encoded = found.encode([ROWS[9]])
    expected = tokenizer(text)["input_ids"]
    expected = expected[:-1] if expected[-1] == tokenizer.sep_token_id else expected
    assert encoded.facts[0]["prompt"] == expected
    assert encoded.rows[0]["input_ids"][: len(expected)] == expected
    behind = tokenizer(f" {ROWS[9]['output']}", add_special_tokens=False)["input_ids"]
    assert [token for token in encoded.rows[0]["labels"] if token >= 0] == [*behind, tokenizer.eos_token_id]


def test_demonstrations_depend_on_the_seed_and_hold_no_separator(decoder):
    rows = PromptRows([{"input": f"a\n\nfilm {i}", "output": f"old\n\n{i}"} for i in range(6)])
    shown = []
    for seed in (0, 0, 1):
        shown.append(ICL(shots=3).fit(decoder, rows, Settings(seed=seed)).session.task.demonstrations)
        decoder.detach()
    assert shown[0] == shown[1] != shown[2]
    assert all(question.startswith("a film") and answer.startswith("old ") for question, answer in shown[0])
    assert all("\n\n" not in question + answer for question, answer in shown[0])


def test_the_furthest_demonstrations_go_first_and_are_counted(decoder):
    fitted = ICL(shots=8).fit(decoder, ROOMY, Settings())
    task = fitted.session.task
    long = [{"input": "film " * 60}, {"input": "film"}]
    encoded = fitted.session.encode(long, labelled=False)
    (note,) = encoded.notes
    assert note.startswith("1 of 2 rows have no room for all of their demonstrations")
    assert encoded.truncated == 0
    last = fitted.session.tokenizer(task.demonstrations[-1][1], add_special_tokens=False)["input_ids"]
    ids = encoded.facts[0]["prompt"]
    assert any(ids[i : i + len(last)] == last for i in range(len(ids)))
    assert len(ids) <= task.max_length - task.new_tokens
    assert fitted.session.encode([{"input": "film " * 200}], labelled=False).truncated == 1


def test_an_answer_ends_before_the_separator(decoder, monkeypatch):
    found = ICL(shots=2, separator=" ; ").fit(decoder, ROOMY, Settings()).session
    long = replace(found, task=replace(found.task, new_tokens=20))
    assert long.task.stop_text == " ; "
    steps = []

    def written(ids, **options):
        steps.append(len(ids))
        return ["good film ; film: bad"] * len(ids)

    monkeypatch.setattr(found.tokenizer, "batch_decode", written)
    monkeypatch.setattr(found.tokenizer, "decode", lambda ids, **options: "good film ; film: bad")
    assert long.predict(ROWS[10:]) == [{"text": "good film"}] * 2
    assert steps == [2]  # both rows ended after their first token


def test_no_row_is_shown_its_own_text(decoder):
    found = ICL(shots=2, select="nearest").fit(decoder, ROOMY, Settings()).session
    prompts = [fact["prompt"] for fact in found.encode(ROWS[:8]).facts]
    texts = found.tokenizer.batch_decode(prompts)
    own = found.tokenizer.batch_decode(found.tokenizer([row["input"] for row in ROWS[:8]])["input_ids"])
    inner = [text.removeprefix("[CLS] ").removesuffix(" [SEP]") for text in own]
    assert [text.count(each) for text, each in zip(texts, inner, strict=True)] == [1] * 8


def test_an_order_is_chosen_on_validation_rows(decoder):
    fitted = ICL(shots=3, order="search", orders=3).fit(decoder, ROOMY, Settings())
    assert [name for name, _ in fitted.trials] == ["order 1", "order 2", "order 3"]
    assert "rougeL of 3 sets or orders of demonstrations on 2 validation rows" in fitted.notes[0]
    decoder.detach()
    with pytest.raises(DeltatuneError, match="needs validation rows"):
        ICL(shots=3, order="search").fit(decoder, PromptRows(ROWS[:8]), Settings())
    assert decoder.name not in decoder.host.adapters


def test_a_length_cuts_texts_and_no_answers(decoder):
    rows = [{"input": "film " * 30, "output": "old good film"} for _ in range(3)]
    task = ICL(shots=2, length=24).fit(decoder, PromptRows(rows), Settings()).session.task
    for question, answer in task.demonstrations:
        assert answer == "old good film"
        assert 0 < question.count("film") < 30
    decoder.detach()
    with pytest.raises(DeltatuneError, match="more than length=2; raise length"):
        ICL(shots=2, length=2).fit(decoder, PromptRows(rows), Settings())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ICL(calibration="content-free"), "calibration='content-free' is for one class a row"),
        (ICL(select="balanced", order="by-class"), "select='balanced', order='by-class' are for one class a row"),
        (ICL(sets=2, labels="random", scoring="channel"), "scoring='channel', labels='random', sets=2 are for one"),
        (ICL(words="a=b"), "words='a=b' is for one class a row"),
        (ICL(separator=" "), "the separator is where a written answer ends"),
        (ICL(template="{input} {mask}"), "leave {mask} out"),
        (ICL(format="{inptu}:"), "did you mean 'input'"),
        (ICL(shots=20), "20 demonstrations in all are asked for, and 8 training rows can be shown"),
        (ZeroShot(template="film"), "names no column"),
        (ZeroShot(scoring="logit"), "scoring='logit' is for one class a row"),
    ],
)
def test_what_texts_do_not_have_is_refused(decoder, method, message):
    with pytest.raises(DeltatuneError, match=message):
        method.check_session(decoder, ROOMY)
    assert decoder.name not in decoder.host.adapters


@pytest.mark.parametrize(("metric", "best"), [("rougeL", max), ("ter", min)])
def test_the_best_wording_is_kept_and_all_are_reported(decoder, metric, best, tmp_path):
    texts = ("{input} is", "film: {input} a", "old {input}\n")
    session = replace(decoder, task=replace(decoder.task, metric=metric))
    method = TemplateSearch(templates=texts, stop="\n")
    method.check_session(session, ROOMY)
    fitted = method.fit(session, PromptRows(ROWS[:4], ROWS), Settings())
    scores = dict(fitted.trials)
    assert sorted(scores) == sorted(texts)
    assert scores[fitted.session.task.prompt] == best(scores.values())
    assert fitted.trials[0][0] == fitted.session.task.prompt
    assert f"3 wordings were tried: {metric}" in fitted.notes[0]
    session.detach()
    alone = ZeroShot(template=texts[1], stop="\n").fit(session, ROOMY, Settings()).session
    assert alone.score(alone.encode(ROWS))[metric] == pytest.approx(scores[texts[1]])
    session.detach()
    with pytest.raises(DeltatuneError, match="wordings for texts as answers are not made up"):
        TemplateSearch().check_session(session, ROOMY)
    with pytest.raises(DeltatuneError, match="paraphrases=2 is for one class a row"):
        TemplateSearch(templates=texts, paraphrases=2).check_session(session, ROOMY)


def test_options_and_conversations_are_refused(tmp_path):
    chats = session_of("llama", tmp_path / "model", text=("messages",), prompt="chat")
    with pytest.raises(DeltatuneError, match="these rows are conversations"):
        ICL().check_session(chats, ROOMY)
    plain = replace(chats, task=Generate(new_tokens=6, max_length=40))
    with pytest.raises(DeltatuneError, match="--words is for one class a row"):
        ZeroShot().check_session(plain, ROOMY, PromptOptions(words=("a=b",)))
    given = ZeroShot().prompt(plain, PromptOptions(template=TEMPLATE))
    assert isinstance(given, GenerateInContext)
    assert given.prompt == TEMPLATE
    with pytest.raises(DeltatuneError, match="or a tuning method with --prompt"):
        parse("Cloze(LoRA())").check_task(plain.task)


class Echo:
    """A server that writes the last line of its prompt, a blank line and more."""

    name = "echo"

    def __init__(self):
        self.seen = []

    def generate(self, prompts, params):
        self.seen += [(prompt, params) for prompt in prompts]
        return [f" {prompt.splitlines()[-1]}\n\nmore" for prompt in prompts]


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_server_reads_the_same_prompt(decoder, tmp_path, form):
    data = Data("d", "", ("input",), "output", "text", (), ROWS[:8], ROWS[8:10], ROWS[10:])
    method, echo = ICL(shots=2, template=TEMPLATE), Echo()
    echo.form = form
    served = server_session(CachedEndpoint(echo, tmp_path / "answers.jsonl"), method, data, seed=3)
    local = method.fit(decoder, ROOMY, Settings(seed=3)).session
    assert served.task.demonstrations == local.task.demonstrations
    answers = served.predict(ROWS[10:])
    prompt, params = echo.seen[0]
    assert prompt == local.task.prompt_of(ROWS[10])
    assert params.stop == ("\n\n",)
    assert answers == [{"text": f"film: {row['input']} is"} for row in ROWS[10:]]
    assert {"rougeL", "bleu"} <= set(served.task.score(answers, served.encode(ROWS[10:]).references))
    with pytest.raises(DeltatuneError, match="select='nearest' needs the model itself"):
        server_session(served.endpoint, ICL(select="nearest"), data)


def test_beams_end_at_the_separator_too(session):
    found = ICL(shots=2).fit(session, ROOMY, Settings()).session
    searched = replace(found, task=replace(found.task, beams=2))
    assert all("\n\n" not in answer["text"] for answer in searched.predict(ROWS[10:]))
