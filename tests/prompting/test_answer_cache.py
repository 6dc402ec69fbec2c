"""Answers kept on disk: nothing is asked twice, whatever was killed, whoever else writes, against a real server."""

import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.prompting import LocalModel, SamplingParams
from deltatune.prompting.endpoints.answer_cache import AnswerCache, AnswerSource
from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint
from deltatune.prompting.endpoints.endpoint import Completion, Request
from support.endpoint_server import endpoint_of, prompt_of, running, text_of

HERE = AnswerSource("m", "http://localhost/v1", "plain")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def echoed(body, number):
    return 200, text_of(f"<{prompt_of(body)}>", usage=USAGE)


def written(file: Path, count: int, start: int = 0) -> None:
    cache = AnswerCache(file)
    for number in range(start, start + count):
        cache.put(HERE, Request(f"prompt {number} é\n"), Completion(f"answer {number}"))


# ---- the file


def test_answers_survive_the_process(tmp_path):
    file = tmp_path / "deep" / "answers.jsonl"
    completion = Completion("tw\u00f6\nlines \u2028", True, 5, None, 2)
    AnswerCache(file).put(HERE, Request("p"), completion)
    cache = AnswerCache(file)
    assert cache.get(HERE, Request("p")) == completion
    assert (len(cache), cache.notes) == (1, [])


def test_an_answer_belongs_to_all_that_it_depends_on(tmp_path):
    cache = AnswerCache(tmp_path / "a.jsonl")
    request = Request("p", SamplingParams(temperature=0.5, stop=("x",)))
    cache.put(HERE, request, Completion("a"))
    others = [
        (HERE, Request("q", request.params)),
        (HERE, Request("p")),
        (HERE, request.sample(1)),
        (AnswerSource("other", HERE.url, HERE.form), request),
        (AnswerSource("m", "http://other/v1", HERE.form), request),
        (AnswerSource("m", HERE.url, "chat"), request),
    ]
    assert [cache.get(*other) for other in others] == [None] * 6
    assert cache.get(HERE, request.sample(0)) == Completion("a")


def test_an_unfinished_last_line_is_dropped_and_noted(tmp_path):
    file = tmp_path / "a.jsonl"
    written(file, 3)
    whole = file.read_bytes()
    for cut in (1, 20, 100):
        file.write_bytes(whole[:-cut])
        cache = AnswerCache(file)
        assert len(cache) == 2
        assert "the last line was not finished" in cache.notes[0]
        cache.put(HERE, Request("prompt 2 é\n"), Completion("answer 2"))
        assert file.read_bytes() == whole


def test_a_torn_header_is_written_again(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"format": "deltatune an')
    written(file, 1)
    assert len(AnswerCache(file)) == 1


@pytest.mark.parametrize("content", [b"text,label\na,b\n", b"text,label\na,b", b"notes", b'{"text": "a"}\n'])
def test_another_file_is_refused_and_not_changed(tmp_path, content):
    file = tmp_path / "data.csv"
    file.write_bytes(content)
    with pytest.raises(DeltatuneError, match=r"data.csv is no file of answers that deltatune wrote"):
        AnswerCache(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("seed"), "'seed' is missing, unknown or of another type"),
        (lambda entry: entry.update(more=1), "'more'"),
        (lambda entry: entry.update(text=None), "'text'"),
        (lambda entry: entry.update(retries=True), "'retries'"),
        (lambda entry: entry.update(stop=[1]), "'stop'"),
        (lambda entry: entry.update(stop=1), "'stop'"),
        (lambda entry: entry.update(temperature="0"), "'temperature'"),
    ],
)
def test_a_changed_line_is_refused_with_its_number(tmp_path, change, message):
    file = tmp_path / "a.jsonl"
    written(file, 3)
    lines = file.read_text().splitlines()
    entry = json.loads(lines[2])
    change(entry)
    lines[2] = json.dumps(entry)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DeltatuneError, match=rf"a.jsonl line 3 is no answer: .*{message}.*delete the line"):
        AnswerCache(file)


def test_a_broken_line_and_a_list_are_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    written(file, 1)
    good = file.read_bytes()
    for line in (b'{"text": \n', b"[]\n", b"\xff\xfe\n", b'{"text": NaN}\n'):
        file.write_bytes(good + line)
        with pytest.raises(DeltatuneError, match=r"a.jsonl line 3.*delete the line, and its request is sent again"):
            AnswerCache(file)


def test_two_processes_share_a_file(tmp_path):
    file = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=written, args=(file, 60, start)) for start in (0, 30, 60)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(AnswerCache(file)) == 120
    assert len(file.read_bytes().splitlines()) == 121  # those that two of them wrote are there once


def test_what_cannot_be_written_is_a_plain_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "answers.jsonl", tmp_path):
        with pytest.raises(DeltatuneError):
            AnswerCache(place)


# ---- an endpoint with a file


def test_an_answer_that_is_there_makes_no_call(tmp_path):
    file = tmp_path / "answers.jsonl"
    with running(echoed) as server:
        first = CachedEndpoint(endpoint_of(server), file)
        assert first.generate(["a", "b", "a"], SamplingParams()) == ["<a>", "<b>", "<a>"]
        assert len(server.requests) == 2  # equal requests are sent once
        second = CachedEndpoint(endpoint_of(server), file)
        assert second.generate(["b", "a", "c"], SamplingParams()) == ["<b>", "<a>", "<c>"]
        assert len(server.requests) == 3
    assert first.cost.to_json() == {
        "calls": 2, "cached": 0, "retries": 0, "prompt_tokens": 6, "completion_tokens": 4, "uncounted": 0,
        "truncated": 0,
    }  # fmt: skip
    assert (second.cost.calls, second.cost.cached) == (1, 2)
    assert "1 calls, 2 answers were there already, 3 tokens read and 2 generated" in second.cost.describe()


def test_samples_of_a_prompt_are_different_requests(tmp_path):
    def seeded(body, number):
        return 200, text_of(str(body["seed"]))

    texts: dict[int, str] = {}
    with running(seeded) as server:
        endpoint = CachedEndpoint(endpoint_of(server), tmp_path / "a.jsonl")
        requests = [Request("p", SamplingParams(temperature=0.7, seed=5)).sample(number) for number in range(3)]
        endpoint.completions(requests, lambda number, completion: texts.update({number: completion.text}))
        assert texts == {0: "5", 1: "100008", 2: "200011"}
        endpoint.completions(requests, lambda number, completion: None)
        assert len(server.requests) == 3


def test_a_server_that_dies_in_the_middle_loses_nothing(tmp_path):
    file = tmp_path / "answers.jsonl"
    prompts = [str(number) for number in range(12)]

    def dying(body, number):
        return echoed(body, number) if number <= 5 else (0, "")

    with running(dying) as server:
        broken = CachedEndpoint(endpoint_of(server, retries=0, concurrency=1), file)
        with pytest.raises(DeltatuneError) as error:
            broken.generate(prompts, SamplingParams())
    assert f"5 of 12 answers are kept in {file}; the same command goes on from there" in str(error.value)
    assert "closed the connection" in str(error.value)
    with running(echoed, server.http.server_port) as server:
        again = CachedEndpoint(endpoint_of(server), file)
        assert again.generate(prompts, SamplingParams()) == [f"<{prompt}>" for prompt in prompts]
        assert len(server.requests) == 7
    assert (again.cost.cached, again.cost.calls) == (5, 7)


def test_an_interrupted_run_keeps_its_answers(tmp_path):
    file = tmp_path / "answers.jsonl"

    def interrupting(prompts):
        raise KeyboardInterrupt

    with running(echoed) as server:
        endpoint = CachedEndpoint(endpoint_of(server), file)
        endpoint.generate(["a"], SamplingParams())
        endpoint.endpoint = interrupting
        with pytest.raises(KeyboardInterrupt):
            endpoint.generate(["b"], SamplingParams())
    assert len(AnswerCache(file)) == 1


def test_retries_and_waits_are_counted(tmp_path):
    def busy(body, number):
        return (429, "busy", {"Retry-After": "0.01"}) if number in (1, 2, 4) else echoed(body, number)

    with running(busy) as server:
        endpoint = CachedEndpoint(endpoint_of(server, concurrency=1), tmp_path / "a.jsonl")
        assert endpoint.generate(["a", "b"], SamplingParams()) == ["<a>", "<b>"]
        assert len(server.requests) == 5
    assert (endpoint.cost.calls, endpoint.cost.retries) == (2, 3)
    assert "3 retries" in endpoint.cost.describe()


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": "3"}, 7])
def test_tokens_are_never_invented(usage):
    def silent(body, number):
        return 200, text_of("x", **({} if usage is None else {"usage": usage}))

    with running(silent) as server:
        endpoint = CachedEndpoint(endpoint_of(server))
        endpoint.generate(["a"], SamplingParams())
    assert endpoint.cost.to_json()["prompt_tokens"] is None
    assert endpoint.cost.uncounted == 1
    assert "tokens unknown" in endpoint.cost.describe()


def test_texts_that_were_cut_are_counted_from_the_disk_too(tmp_path):
    def cut(body, number):
        return 200, text_of("half", "length")

    with running(cut) as server:
        CachedEndpoint(endpoint_of(server), tmp_path / "a.jsonl").generate(["a"], SamplingParams())
        again = CachedEndpoint(endpoint_of(server), tmp_path / "a.jsonl")
        again.generate(["a"], SamplingParams())
    assert (again.cost.truncated, again.cost.calls) == (1, 0)


def test_many_threads_write_whole_lines(tmp_path):
    cache = AnswerCache(tmp_path / "a.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [cache.put(HERE, Request(f"{n} {i}"), Completion("x")) for i in range(10)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(AnswerCache(tmp_path / "a.jsonl")) == 80


def test_a_local_model_counts_its_own_tokens(tiny_gpt2, tiny_tokenizer, tmp_path):
    model = LocalModel(tiny_gpt2("lm"), tiny_tokenizer, label="tiny")
    endpoint = CachedEndpoint(model, tmp_path / "a.jsonl")
    texts = endpoint.generate(["the film", "it was good"], SamplingParams(max_tokens=4))
    assert (endpoint.cost.calls, endpoint.cost.uncounted, endpoint.cost.prompt_tokens) == (2, 0, 7)
    assert 2 <= endpoint.cost.completion_tokens <= 8
    again = CachedEndpoint(model, tmp_path / "a.jsonl")
    assert again.generate(["the film", "it was good"], SamplingParams(max_tokens=4)) == texts
    assert again.cost.calls == 0


def test_a_function_is_an_endpoint_that_counts_nothing():
    endpoint = CachedEndpoint(lambda prompts: [prompt.upper() for prompt in prompts])
    assert endpoint(["a", "b"]) == ["A", "B"]
    assert endpoint.cost.uncounted == 2
