"""What clients are told when the engine refuses a request, or fails in the middle of one."""

import openai
import pytest

from deltatune.core.errors import DeltatuneError, OutOfMemory
from deltatune.serving.engine.requests import DoneEvent, Timings, TokenEvent
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.serving_errors import AdapterUnavailable, CannotServe, EngineStopped, QueueFull
from support.guarded_server import wait_for

TIMINGS = Timings(0.0, None, 0.1)
BODY = {"model": "plain", "prompt": "good", "max_tokens": 5}


@pytest.fixture
def scripted(served, monkeypatch):
    """Let the engine answer every request with these events, or raise."""

    def script(*events):
        def submit(request):
            ticket = Ticket(request, lambda: None)
            for event in events:
                if isinstance(event, Exception):
                    raise event
                ticket.put(event)
            return ticket

        monkeypatch.setattr(served.engine, "submit", submit)

    return script


def failed(error):
    return DoneEvent("error", TIMINGS, error)


@pytest.mark.parametrize(
    ("event", "status", "code", "words"),
    [
        (QueueFull("512 requests wait"), 503, "service_unavailable", "overloaded"),
        (EngineStopped("closed"), 503, "service_unavailable", "closed"),
        (CannotServe("no text"), 400, "cannot_serve", "no text"),
        (failed(AdapterUnavailable("/secret/folder is damaged")), 503, "adapter_unavailable", "log says more"),
        (failed(OutOfMemory("CUDA out of memory")), 503, "service_unavailable", "no memory left"),
        (failed(RuntimeError("CUDA out of memory, secret words")), 503, "service_unavailable", "no memory left"),
        (failed(DeltatuneError("row 0: too long")), 400, "invalid_value", "row 0"),
        (failed(RuntimeError("secret words")), 500, None, "had an error"),
        (DoneEvent("timeout", TIMINGS), 504, "timeout", "longer than it may"),
        (DoneEvent("cancelled", TIMINGS), 503, "service_unavailable", "send it again"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_have_their_status(served, scripted, event, status, code, words, stream):
    scripted(event)
    answer = served.http.post("/v1/completions", json={**BODY, "stream": stream})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], words in error["message"]) == (code, True)
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) == (code == "service_unavailable")
    rows = served.http.post("/v1/classify", json={"model": "sst2", "input": "good"})
    assert (rows.status_code, rows.json()["error"]["code"]) == (status, code)


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(served, scripted):
    scripted(TokenEvent(20), TokenEvent(21), failed(RuntimeError("secret words")))
    stream = iter(served.openai.completions.create(**BODY, stream=True))
    assert next(stream).choices[0].text
    assert next(stream).choices[0].text
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert "had an error" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert wait_for(lambda: any("secret words" in e.get("traceback", "") for e in served.events()))  # for the log


def test_one_of_several_answers_that_fails_ends_all(served, scripted, monkeypatch):
    tickets = []

    def submit(request):
        ticket = Ticket(request, lambda: None)
        if tickets:
            ticket.put(failed(DeltatuneError("the second one fails")))
        tickets.append(ticket)
        return ticket

    monkeypatch.setattr(served.engine, "submit", submit)
    assert "second one" in served.refused("/v1/completions", **BODY, n=3)["message"]
    assert tickets[0].cancelled
    assert tickets[2].cancelled or tickets[2].done


def test_if_one_request_is_refused_those_before_it_are_cancelled(served, monkeypatch):
    tickets = []

    def submit(request):
        if len(tickets) == 2:
            raise QueueFull("full")
        tickets.append(Ticket(request, lambda: None))
        return tickets[-1]

    monkeypatch.setattr(served.engine, "submit", submit)
    served.refused("/v1/completions", 503, **BODY, n=4)
    assert [ticket.cancelled for ticket in tickets] == [True, True]
