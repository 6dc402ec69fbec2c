"""Prompts and answers as tokens: inputs, labels, and equality of training and generation."""

import json

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.tasks import Generate
from deltatune.tasks.prompts.prompt_format import (
    alpaca_prompt,
    check_template,
    fill_template,
    last_answer,
    plain_prompt,
)
from deltatune.tasks.task import IGNORED
from support import models, vocabularies
from support.chats import TEMPLATES, chat_tokenizer, talk

ROW = {"instruction": "Count {to} {{3}}", "input": "now", "output": "1 2 3 {x}"}
LONG = [talk("first question", "first answer", "second question", "second answer", "third", "last answer")]
TALKS = {
    "one": talk("How are you?", "Well, thanks."),
    "two": talk("How are you?", "Well, thanks.", "Good. And now?", "Now I rest."),
    "again": talk("same", "same", "same", "same"),
    "odd": talk("é 🙂 {x}", "  这家酒店 \n", "assistant", "assistant\nuser"),
}


def labelled(row):
    return [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]


def learned_texts(row, tokenizer):
    """The runs of learned tokens as texts."""
    runs, before = [], IGNORED
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            runs += [[]] if before == IGNORED else []
            runs[-1].append(token)
        before = label
    return [tokenizer.decode(run) for run in runs]


def both(task, rows, tokenizer, **options):
    """Encoded for training and for use; the law: what is read in use is how the trained tokens begin."""
    trained = task.encode(rows, tokenizer, **options)
    asked = task.encode([{**row, **bare(row)} for row in rows], tokenizer, labelled=False, **options)
    last = {owner: piece for owner, piece in zip(trained.owners, trained.rows, strict=True)}
    for i, prompt in enumerate(asked):
        ids = prompt["input_ids"]
        assert trained.facts[i] == asked.facts[i] == {"prompt": ids}
        assert last[i]["input_ids"][: len(ids)] == ids
        assert last[i]["labels"][len(ids)] != IGNORED
    return trained


def bare(row):
    return {"messages": row["messages"][:-1]} if "messages" in row else {}


# --- columns ---


def test_plain_and_alpaca_prompts_are_as_written():
    assert plain_prompt(["a {b}", "c"]) == "a {b}\nc\n"
    with_input = alpaca_prompt(["Do {it}.", "here {there}"])
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nDo {it}.\n\n### Input:\n"
        "here {there}\n\n### Response:\n"
    )
    assert alpaca_prompt(["Do {it}.", " "]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo {it}.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("plain", "Count {to} {{3}}\nnow\n"),
        ("Q: {instruction} ({input})\nA:", "Q: Count {to} {{3}} (now)\nA:"),
        ("{{{input}}} {instruction}", "{now} Count {to} {{3}}"),
        ("alpaca", alpaca_prompt(["Count {to} {{3}}", "now"])),
    ],
)
def test_prompts_show_the_columns_as_they_are(prompt, text):
    tokenizer = chat_tokenizer()
    task = Generate(text=("instruction", "input"), prompt=prompt)
    (row,) = both(task, [ROW], tokenizer)
    assert tokenizer.decode(row["input_ids"]) == f"<|begin|>{text}1 2 3 {{x}}<|end|>"
    assert tokenizer.decode(labelled(row)) == "1 2 3 {x}<|end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Q: {question", "is not a template"),
        ("chatt", "names no column in braces, did you mean 'chat'"),
        ("{inptu}", r"names \{inptu\}, did you mean 'input'"),
        ("{}", r"names \{\}"),
        ("{0}", r"names \{0\}"),
        ("{input.__class__}", "its columns: input"),
        ("{input[0]}", "its columns: input"),
        ("{input:{width}}", "its columns: input"),
    ],
)
def test_templates_are_checked_before_anything_runs(template, message):
    with pytest.raises(DeltatuneError, match=message):
        Generate(text=("input",), prompt=template)
    assert check_template("{input}", ["input"]) == []
    assert fill_template("{input}!", {"input": "{x}"}) == "{x}!"


def test_a_tokenizer_that_ends_texts_does_not_end_prompts():
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    (row,) = both(Generate(), [{"input": "the film", "output": "is good"}], tokenizer)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "the", "film", "is", "good", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(labelled(row)) == ["is", "good", "[SEP]"]


def test_an_encoder_reads_the_prompt_and_a_decoder_writes_the_answer():
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    task, rows = Generate(), [{"input": "the film", "output": "is good"}]
    encoded = task.encode(rows, tokenizer, joined=False)
    tokens = tokenizer.convert_ids_to_tokens
    assert tokens(encoded[0]["input_ids"]) == ["[CLS]", "the", "film", "[SEP]"]
    assert tokens(encoded[0]["labels"]) == ["[CLS]", "is", "good", "[SEP]"], "as the model was pretrained"
    assert task.encode(rows, tokenizer, labelled=False, joined=False)[0]["input_ids"] == encoded[0]["input_ids"]


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(DeltatuneError, match="has no end token"):
        Generate().encode([{"input": "a", "output": "b"}], models.tiny_tokenizer())


# --- conversations ---


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "thinking"])
@pytest.mark.parametrize("name", TALKS)
def test_every_answer_of_a_conversation_is_learned_and_nothing_else(template, name):
    tokenizer, messages = chat_tokenizer(template), TALKS[name]
    (row,) = both(Generate(text=("messages",), new_tokens=32), [{"messages": messages}], tokenizer)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    end = {"inst": "</s>", "no end": ""}.get(template, "<|im_end|>")
    learned = learned_texts(row, tokenizer)
    assert len(learned) == len(answers)
    for i, (text, content) in enumerate(zip(learned, answers, strict=True)):
        assert text.endswith(end or ("<|end|>" if i == len(answers) - 1 else ""))
        text = text.removesuffix("<|end|>").removesuffix(end)
        text = text.removeprefix("<|im_start|>assistant\n") if template == "no prompt" else text
        assert text.strip() == content.strip()
        assert template == "inst" or template == "no end" or text == content
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    written = tokenizer.decode(row["input_ids"])
    if template == "no thoughts":
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert written == f"{prompt}{answers[-1]}<|im_end|>"
    elif template == "no end":
        assert written == whole.removesuffix("\n") + "<|end|>"
    else:
        assert written == whole.removesuffix("\n")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_is_what_others_make_of_the_template(template):
    """A server that renders the template and cuts the text into tokens in one go reads the same."""
    tokenizer = chat_tokenizer(template)
    for messages in TALKS.values():
        (row,) = Generate(text=("messages",)).encode([{"messages": messages[:-1]}], tokenizer, labelled=False)
        theirs = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True)
        theirs = theirs if isinstance(theirs, list) else theirs["input_ids"]
        assert row["input_ids"] == theirs


def test_where_a_template_rewrites_earlier_turns_every_answer_has_a_row_of_its_own():
    tokenizer = chat_tokenizer("thinking")
    messages = talk("a?", "<think>\nhm\n</think>\n\nfirst", "b?", "second")
    encoded = both(Generate(text=("messages",)), [{"messages": messages}, {"messages": TALKS["one"]}], tokenizer)
    assert encoded.owners == [0, 0, 1]
    assert [learned_texts(row, tokenizer) for row in encoded] == [
        ["<think>\nhm\n</think>\n\nfirst<|im_end|>"],
        ["<think>\n\n</think>\n\nsecond<|im_end|>"],
        ["<think>\n\n</think>\n\nWell, thanks.<|im_end|>"],
    ]
    for row, end in zip(encoded.rows[:2], (2, 4), strict=True):
        shown = tokenizer.apply_chat_template(messages[:end], tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == shown.removesuffix("\n")
    assert encoded.row_references == [["second"], ["Well, thanks."]]


def test_an_encoder_reads_the_conversation_and_every_answer_has_a_row_of_its_own():
    tokenizer = chat_tokenizer()
    task = Generate(text=("messages",))
    encoded = task.encode([{"messages": TALKS["two"]}], tokenizer, joined=False)
    assert [tokenizer.decode(row["labels"]) for row in encoded] == ["Well, thanks.<|im_end|>", "Now I rest.<|im_end|>"]
    assert encoded[1]["input_ids"] == encoded.facts[0]["prompt"]
    assert encoded.owners == [0, 0]


def test_thoughts_that_a_template_leaves_out_are_not_lost_in_silence():
    messages = talk("a?", "<think>\nhm\n</think>\n\nfirst")
    with pytest.raises(DeltatuneError, match=r"row 0: .*changes the assistant's message '<think>"):
        Generate(text=("messages",)).encode([{"messages": messages}], chat_tokenizer("no thoughts"))


def test_what_a_template_refuses_is_told_with_its_row():
    rows = [{"messages": TALKS["one"]}, {"messages": talk("a", "b", system="Be kind.")}]
    with pytest.raises(DeltatuneError, match=r"row 1: .*refuses the conversation: no system"):
        Generate(text=("messages",)).encode(rows, chat_tokenizer("inst"))


def test_columns_become_a_turn_of_the_user():
    tokenizer = chat_tokenizer()
    (row,) = both(Generate(text=("instruction", "input"), prompt="chat"), [ROW], tokenizer)
    assert tokenizer.decode(row["input_ids"]) == (
        "<|im_start|>user\nCount {to} {{3}}\nnow<|im_end|>\n<|im_start|>assistant\n1 2 3 {x}<|im_end|>"
    )
    assert learned_texts(row, tokenizer) == ["1 2 3 {x}<|im_end|>"]


def test_writing_stops_at_the_end_token_and_at_the_templates_own():
    def stops(template, prompt):
        tokenizer = chat_tokenizer(template)
        return set(tokenizer.convert_ids_to_tokens(sorted(Generate(prompt=prompt).stops(tokenizer))))

    assert stops("chatml", "plain") == {"<|end|>"}
    assert stops("chatml", "chat") == {"<|end|>", "<|im_end|>"}
    assert stops("inst", "chat") == {"<|end|>", "</s>"}
    assert stops("no end", "chat") == {"<|end|>"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": talk("a")}], "row 0: the conversation does not end with an answer"),
        ([{"messages": talk("a", " ")}], "row 0: the conversation's last answer is empty"),
        ([{"messages": "hello"}], "row 0: messages is not a conversation"),
        ([{"messages": [{"role": "user"}]}], "without role and content"),
        ([{"message": []}], "no column 'messages'"),
    ],
)
def test_bad_conversations_are_named(rows, message):
    with pytest.raises(DeltatuneError, match=message):
        Generate(text=("messages",)).encode(rows, chat_tokenizer())


def test_a_conversation_stands_alone_and_needs_a_template():
    for fields in ({"text": ("messages", "more")}, {"text": ("messages",), "prompt": "alpaca"}):
        with pytest.raises(DeltatuneError, match="is a whole conversation"):
            Generate(**fields)
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    for task, row in ((Generate(prompt="chat"), {"input": "a", "output": "b"}),):
        with pytest.raises(DeltatuneError, match="has no chat template"):
            task.encode([row], tokenizer)


def test_where_an_answer_stands():
    tokenizer = chat_tokenizer("inst")
    text, place = last_answer(talk("q", "a"), tokenizer)
    assert (text[: place.start], text[place.start : place.end], text[place.end : place.stop]) == (
        "<s>[INST] q [/INST]", " a", " </s>",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "bytes"])
@pytest.mark.parametrize("prompt", ["plain", "alpaca", "Q: {instruction} {input} A:"])
def test_answers_are_cut_into_tokens_as_the_whole_text_is(kind, prompt):
    tokenizer = chat_tokenizer() if kind == "bytes" else vocabularies.tokenizer(kind)
    task = Generate(text=("instruction", "input"), prompt=prompt)
    (row,) = both(task, [{"instruction": "the film", "input": "x", "output": "was reading"}], tokenizer)
    text = {"plain": "the film\nx\n", "alpaca": alpaca_prompt(["the film", "x"])}.get(prompt, "Q: the film x A:")
    assert row["input_ids"] == [*tokenizer(text + "was reading")["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("template", ["chatml", "inst", "no end"])
def test_sentencepiece_learns_every_answer_too(template):
    tokenizer = vocabularies.tokenizer("llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATES[template]
    for messages in TALKS.values():
        (row,) = both(Generate(text=("messages",), new_tokens=99), [{"messages": messages}], tokenizer)
        answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        ends = ("</s>", "<|im_end|>")
        assert [
            text.removesuffix(ends[0]).removesuffix(ends[1]).strip() for text in learned_texts(row, tokenizer)
        ] == answers


# --- too long ---


@pytest.mark.parametrize("prompt", ["plain", "alpaca", "chat", "Q: {instruction} {input} A: "])
def test_a_long_prompt_loses_the_end_of_its_longest_column_and_keeps_the_answer(prompt):
    tokenizer = chat_tokenizer()
    size = 220 if prompt == "alpaca" else 100
    task = Generate(text=("instruction", "input"), prompt=prompt, max_length=size, new_tokens=20)
    rows = [{"instruction": "Count!", "input": "word " * 200, "output": "one two"}, ROW]
    encoded = both(task, rows, tokenizer)
    assert encoded.truncated == 1
    text = tokenizer.decode(encoded[0]["input_ids"])
    assert "Count!" in text
    assert text.endswith(("one two<|end|>", "one two<|im_end|>"))
    assert size - 40 < len(encoded[0]["input_ids"]) <= size
    assert len(encoded.facts[0]["prompt"]) <= size - 20


def test_an_answer_that_is_too_long_is_cut_behind_its_share_and_counted():
    tokenizer = chat_tokenizer()
    task = Generate(max_length=40, new_tokens=20)
    encoded = both(task, [{"input": "x" * 99, "output": "word " * 99}], tokenizer)
    assert encoded.truncated == 1
    assert len(encoded[0]["input_ids"]) == 40
    assert len(labelled(encoded[0])) >= 20
    assert tokenizer.eos_token_id not in encoded[0]["labels"]


def test_a_long_conversation_loses_its_oldest_turns():
    tokenizer = chat_tokenizer()
    messages = [{"role": "system", "content": "Be kind."}, *LONG[0]]
    sizes = {}
    for size in (400, 120, 105, 90):
        task = Generate(text=("messages",), max_length=size, new_tokens=20)
        encoded = both(task, [{"messages": messages}], tokenizer)
        text = tokenizer.decode(encoded[0]["input_ids"])
        assert "Be kind." in text
        assert text.endswith("last answer<|im_end|>")
        sizes[size] = (len(learned_texts(encoded[0], tokenizer)), encoded.truncated)
    assert sizes[400] == (3, 0)
    assert sizes[90] == (1, 1)
    assert 1 in {answers for answers, _ in sizes.values()}
    assert {answers for answers, truncated in sizes.values() if not truncated} == {3}


def test_a_template_that_leaves_no_room_is_refused():
    task = Generate(text=("instruction",), prompt="alpaca", max_length=40, new_tokens=8)
    with pytest.raises(DeltatuneError, match=r"row 0: a prompt has .* tokens without its input, more than the 32"):
        task.encode([{"instruction": "word " * 50, "output": "b"}], chat_tokenizer())
    with pytest.raises(DeltatuneError, match="leaves no room for a prompt"):
        Generate(max_length=8, new_tokens=8)


# --- from files ---


def test_files_of_sharegpt_and_alpaca_become_rows(tmp_path):
    chats = [
        {"conversations": [{"from": "human", "value": f"q {i}"}, {"from": "gpt", "value": f"a {i}"}]} for i in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    data = read(tmp_path / "chats.jsonl", task="generate")
    tokenizer = chat_tokenizer()
    encoded = both(Generate(text=data.text, label=data.label), data.train, tokenizer)
    texts = {tokenizer.decode(row["input_ids"]) for row in encoded}
    assert all(f"a {text.split('q ')[1].split('<')[0]}<|im_end|>" in text for text in texts)
    alpacas = [{"instruction": f"Do {i}.", "input": "" if i % 2 else "x", "output": f"done {i}"} for i in range(60)]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpacas))
    data = read(tmp_path / "alpaca.json", task="generate")
    encoded = both(Generate(text=data.text, label=data.label, prompt="alpaca"), data.train, tokenizer)
    for row, piece in zip(data.train, encoded, strict=True):
        text = tokenizer.decode(piece["input_ids"]).removeprefix("<|begin|>")
        assert text == alpaca_prompt([row["instruction"], row["input"]]) + row["output"] + "<|end|>"
