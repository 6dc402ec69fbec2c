"""Templates are code of others: what reads files, never ends or needs all memory is one plain error in any thread."""

import threading
import time

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.prompts import chat_templates
from deltatune.tasks.prompts.prompt_format import chat_prompt, check_template
from deltatune.tasks.prompts.templates import Template
from support.chats import TEMPLATES, chat_tokenizer, talk


def error_of(template: str) -> str:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DeltatuneError, match="this tokenizer's chat template") as caught:
        chat_prompt(talk("hello"), tokenizer)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% include '/etc/passwd' %}", "it cannot read files"),
        ("{% extends 'a' %}", "it cannot read files"),
        ("{% import 'a' as b %}", "it cannot read files"),
        ("{{ ''.__class__.__mro__ }}", "fails (SecurityError)"),
        ("{{ messages.__init__.__globals__ }}", "fails (SecurityError)"),
        ("{% for i in range(10**9) %}x{% endfor %}", "fails (OverflowError)"),
        ("{{ messages[9]['content'] }}", "fails (UndefinedError)"),
        ("{% for m in messages %}", "fails (TemplateSyntaxError)"),
        ("{{ 1 / 0 }}", "fails (ZeroDivisionError)"),
        ("{{ raise_exception('only one turn') }}", "refuses the conversation: only one turn"),
        ("\ud800{{ messages[0].content }}", "makes half of a surrogate pair"),
        ("<s>", "leaves out or changes the message 'hello' of the role 'user'"),
        ("{{ messages[0].content | upper }}", "leaves out or changes the message 'hello'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "fails (RecursionError)"),
        ("{{ 'x' * 2000000000 }}", "needs more than 1,024 MB of memory"),
        ("{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "of memory"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "makes more than 10,000,000 characters"),
    ],
    ids=lambda value: value[:28],
)  # fmt: skip
def test_a_hostile_chat_template_is_a_plain_error(template: str, message: str) -> None:
    assert message in error_of(template)


@pytest.mark.parametrize(
    "template", ["{{ 10**(10**10) }}", "{% set r = range(99999) %}" + "{% for i in r %}" * 3 + "{% endfor %}" * 3]
)
def test_a_template_without_end_is_stopped_in_every_thread(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "TRIAL_SECONDS", 1)
    errors: list[str] = []
    start = time.monotonic()
    thread = threading.Thread(target=lambda: errors.append(error_of(template)))
    thread.start()
    thread.join(30)
    assert errors
    assert "does not come to an end within 1 seconds" in errors[0]
    assert time.monotonic() - start < 20


def test_known_templates_pass_the_trial_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    trial = chat_templates._trial
    monkeypatch.setattr(chat_templates, "_trial", lambda *args: calls.append(args) or trial(*args))
    monkeypatch.setattr(chat_templates, "_tried", set())
    for name in ("chatml", "thinking"):
        tokenizer = chat_tokenizer(name)
        for text in ("hello", "again"):
            assert text in chat_prompt(talk(text), tokenizer)
    assert [template for template, _ in calls] == [TEMPLATES["chatml"], TEMPLATES["thinking"]]
    assert all(trial(*args) == "" for args in calls)


def test_a_role_that_a_template_passes_over_is_named() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
    )
    question = {"role": "user", "content": " hello "}
    assert chat_prompt([question], tokenizer) == "[INST] hello [/INST]"
    for role in ("system", "tool"):
        with pytest.raises(DeltatuneError, match=f"leaves out or changes the message 'be kind' of the role '{role}'"):
            chat_prompt([{"role": role, "content": "be kind"}, question], tokenizer)


def test_a_prompt_that_pads_without_end_is_refused() -> None:
    assert "at most 9999 characters" in check_template("{text:>1000000000}", ["text"])[0]
    assert "takes the width of a column from {label}" in check_template("{text:>{label}}", ["text", "label"])[0]
    assert check_template("{text:.200} {label!s:>20}", ["text", "label"]) == []
    assert "{text.__class__}" in check_template("{text.__class__}", ["text"])[0]
    with pytest.raises(DeltatuneError, match="virtual tokens is too long"):
        Template("{" + "9" * 5000 + "} {text} {mask}")
