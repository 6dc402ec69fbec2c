"""Self-Instruct: what is kept, what is rejected and why, resuming after a kill, and the endpoint."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from deltatune.core.errors import DeltatuneError
from deltatune.prompting import SamplingParams, SelfInstruct, Truncated, generate_instructions
from deltatune.prompting.self_instruct import instruction_prompts as prompts
from deltatune.prompting.self_instruct import quality_filters as filters
from deltatune.prompting.self_instruct import seed_tasks as sampling
from deltatune.prompting.self_instruct.quality_filters import InstructionPool, rouge_l, tokens
from deltatune.prompting.self_instruct.saved_state import OLD_NAMES
from deltatune.prompting.self_instruct.seed_tasks import InstructionExample, InstructionTask, seed_tasks
from deltatune.store.atomic_files import CannotWrite
from support.command_line import ran

WORDS = [
    "bridge",
    "river",
    "letter",
    "summer",
    "garden",
    "window",
    "teacher",
    "answer",
    "number",
    "story",
    "castle",
    "winter",
    "engine",
    "market",
    "doctor",
    "island",
    "forest",
    "kitchen",
    "velvet",
    "ticket",
    "shadow",
    "pocket",
    "mirror",
    "desert",
    "planet",
    "carpet",
    "harbor",
    "butter",
    "copper",
    "silver",
]
SEEDS = [
    {"instruction": f"Tell me something new about the {word} in {number} words.", "output": f"It is {word}."}
    for number, word in enumerate(WORDS[:10])
]


def talk(prompt: str, size: int) -> str:
    """Words that depend on the prompt alone."""
    return " ".join(random.Random(prompt).choices(WORDS, k=size))


def echo(sent: list[str]) -> list[str]:
    """An endpoint that depends on each prompt alone: good texts, and one for every reason to reject."""
    return [_echoed(prompt) for prompt in sent]


def _echoed(prompt: str) -> str:
    last = prompt.rsplit("Task: ", 1)[-1]
    if prompt.endswith("classification?"):
        return " Yes" if "river" in last else "No."
    if prompt.endswith("Label:"):
        return f" wet\nInput: {talk(prompt, 5)}\nLabel: dry\nInput: {talk(prompt + 'x', 5)}\n\nTask: another"
    if prompt.endswith("Example 1\n"):
        if "castle" in last:
            return "Input: one\nOutput: a\n\nExample 2\nInput: one\nOutput: b"
        return f"Input: {talk(prompt, 4)}\nOutput: {talk(prompt + 'o', 6)}\n\nExample 2\nInput: same\nOutput: same"
    if prompt.endswith("Instruction:"):
        good = f" {talk(prompt, 9)}\nInput: (none)\nOutput: {talk(prompt + 'o', 5)}\n###\nTask 9\n"
        other = f"Instruction: Draw the {talk(prompt, 4)}\nInput: a\nOutput: b"
        return f"{good}Instruction: A task without the rest\n###\nTask 10\n{other}"
    repeated = prompt.split("1. ", 1)[1].split("\n")[0]
    lines = f" {talk(prompt, 9)}", repeated, "Too short", f"Draw the {talk(prompt, 4)}", f"?{talk(prompt, 6)}"
    return "".join(f"\n{number}. {line}" if number > 9 else line for number, line in enumerate(lines, 9))


SMALL = SelfInstruct(total=12, seed_tasks=6, generated_tasks=2, prompts=3, seed=3)


# ---- similarity


def test_similarity_is_that_of_rouge_score():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS[:9], k=rng.randint(1, 14))) for _ in range(40)]
    texts += ["Write a poem, please!", "What's 2+2? Answer: 4.", "write a POEM", "Say 'hello' to snake_case names."]
    scorer = RougeScorer(["rougeL"])
    pool = InstructionPool(texts)
    for text in texts[::3]:
        scores = [scorer.score(text, other)["rougeL"].fmeasure for other in texts]
        assert [rouge_l(tokens(text), tokens(other)) for other in texts] == pytest.approx(scores, abs=1e-12)
    for text in ("river castle winter the", "please write a poem", "unheard of"):
        scores = [scorer.score(text, other)["rougeL"].fmeasure for other in texts]
        value, other = pool.most_similar(text)
        assert value == pytest.approx(max(scores), abs=1e-12)
        assert other == (texts[next(i for i, s in enumerate(scores) if abs(s - value) < 1e-9)] if value else "")


def test_the_most_similar_one_is_found_without_comparing_all():
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS[:12], k=rng.randint(1, 12))) for _ in range(200)]
    pool = InstructionPool(texts[:100])
    for text in texts[100:]:
        scores = [rouge_l(tokens(text), tokens(other)) for other in texts[:100]]
        assert pool.most_similar(text) == (max(scores), texts[scores.index(max(scores))])


def test_a_pool_is_truncated():
    pool = InstructionPool(SEED["instruction"] for SEED in SEEDS)
    before = pool.most_similar("Tell me of the winter")
    pool.add_("tell me of the winter")
    assert pool.most_similar("Tell me of the winter") == (1.0, "tell me of the winter")
    pool.truncate_(len(SEEDS))
    assert len(pool) == len(SEEDS)
    assert pool.most_similar("Tell me of the winter") == before
    assert InstructionPool().most_similar("anything") == (0.0, "")


def test_chinese_is_compared_by_characters():
    assert InstructionPool(["写一首关于春天的诗"]).most_similar("写一首关于秋天的诗")[0] == pytest.approx(2 * 8 / 18)


def test_a_large_pool_is_searched_fast():
    rng = random.Random(0)
    vocabulary = [f"word{n}" for n in range(3000)]
    weights = [1 / (n + 1) for n in range(3000)]  # as in language, few words are in most texts
    texts = [" ".join(rng.choices(vocabulary, weights, k=rng.randint(5, 40))) for _ in range(5020)]
    pool = InstructionPool(texts[:5000])
    start = time.process_time()
    for text in texts[5000:]:
        pool.most_similar(text)
    assert (time.process_time() - start) / 20 < 0.1


# ---- parsing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" write a song\n10. Sing it\n11.  Hum", ["Write a song", "Sing it", "Hum"]),
        ("9. A b\n10. C d", ["A b", "C d"]),
        ("Sure, here they are:\n\n9. A b\n\n10. C d", ["A b", "C d"]),
        ("Of course!\n1. A b\n2. C d", ["A b", "C d"]),
        (" A b\n10. C d\n\nThese are all tasks.", ["A b", "C d"]),
        (" A b\n17. beyond", ["A b"]),
        ("Task 9: A b\nTask 10: C d", ["A b", "C d"]),
        ("", []),
    ],
)
def test_lists_are_read(text, found):
    assert prompts.parse_instructions(text, 9, 8) == (found, None)


def test_truncated_parts_are_left_out():
    assert prompts.parse_instructions(Truncated(" A b\n10. C"), 9, 8) == (["A b"], "C")
    assert prompts.parse_instructions(Truncated(" A b\n\nMuch more text"), 9, 8) == (["A b"], None)
    task = "Instruction: a b\nInput: c\nOutput: d"
    assert prompts.parse_whole_tasks(Truncated(f"{task}\n###\nTask 2\nInstr"), 8) == (
        [("a b", InstructionExample("c", "d"))],
        "Instr",
    )
    assert prompts.parse_examples(Truncated("Input: a\nOutput: b\nExample 2\nInput: c\nOut"), 5) == (
        [InstructionExample("a", "b")],
        True,
    )
    assert prompts.parse_labelled_examples(Truncated(" x\nInput: a\nLabel: y\nIn"), 5) == (
        [InstructionExample("a", "x")],
        True,
    )


def test_whole_tasks_are_read():
    text = (
        " Add the numbers.\nInput: 1 and 2\nOutput: 3\n###\nTask 8\nInstruction: Say hi\nInput: (none)\nOutput:\nhi\nho"
    )
    found = [("Add the numbers.", InstructionExample("1 and 2", "3")), ("Say hi", InstructionExample("", "hi\nho"))]
    assert prompts.parse_whole_tasks(text, 8) == (found, None)
    assert prompts.parse_whole_tasks(f"Here:\n\nTask 7\nInstruction:{text}", 8)[0][-2:] == found
    assert prompts.parse_whole_tasks(text, 1)[0] == found[:1]


def test_examples_are_read():
    text = "Input: a\nOutput: b\n\nExample 2\nOutput: c\nInput: spilt\n\nTask: next\nExample 1\nOutput: d"
    assert prompts.parse_examples(text, 5) == ([InstructionExample("a", "b"), InstructionExample("", "c")], False)
    assert prompts.parse_examples("Example 1\nOutput: b", 5) == ([InstructionExample("", "b")], False)
    assert prompts.parse_examples("no such word", 5) == ([], False)
    assert prompts.parse_labelled_examples(" x\nInput: a\nLabel: y\nInput: b", 5)[0] == [
        InstructionExample("a", "x"),
        InstructionExample("b", "y"),
    ]


# ---- filters


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Explain this poem", filters.TOO_SHORT),
        ("word " * 151, filters.TOO_LONG),
        ("Describe the picture to a friend", filters.BLOCKED_WORD),
        ("Where should I go to next?", filters.BLOCKED_WORD),
        ("Describe the picturesque old town", None),
        ("Write a program that sorts numbers", filters.BLOCKED_START),
        ("- write a poem on rain", filters.PUNCTUATION_START),
        ("写一首诗", None),
        ("写首诗", filters.TOO_SHORT),
    ],
)
def test_instructions_are_rejected_for_a_reason(text, reason):
    assert filters.reject_instruction(text.strip(), SelfInstruct()) == reason


def test_words_of_scripts_without_spaces_are_blocked_anywhere():
    assert filters.reject_instruction("请画一张图片给我", SelfInstruct(blocked_words=("图片",))) == filters.BLOCKED_WORD


def test_examples_are_rejected_for_a_reason():
    good = InstructionExample("a", "b")
    bad = {
        filters.NO_OUTPUT: InstructionExample("a", ""),
        filters.REPEATS_INPUT: InstructionExample("a", "a"),
        filters.ENDS_WITH_COLON: InstructionExample("a", "as follows:"),
        filters.DUPLICATE: good,
    }
    kept, refused = filters.filter_examples([good, *bad.values()])
    assert kept == [good]
    assert dict(refused) == bad
    assert filters.filter_examples([good, InstructionExample("a", "c")])[0] == []
    assert filters.filter_examples([InstructionExample("", "b"), InstructionExample("", "c")])[0] == [
        InstructionExample("", "b"),
        InstructionExample("", "c"),
    ]


# ---- rounds


def test_steps_keep_what_is_new_and_count_the_rest():
    steps = []
    rows = generate_instructions(SEEDS, echo, SMALL, on_round=steps.append)
    last = steps[-1]
    names = list(dict.fromkeys(row["instruction"] for row in rows))
    assert last.kept == len(names) == SMALL.total
    assert last.rows == len(rows)
    assert set(rows[0]) == {
        *("instruction", "input", "output", "is_classification", "similarity", "most_similar", "round")
    }
    pool = InstructionPool(seed["instruction"] for seed in SEEDS)
    for name in names:
        own = next(row for row in rows if row["instruction"] == name)
        assert own["similarity"] < 0.7
        assert own["similarity"] == pytest.approx(pool.most_similar(name)[0], abs=1e-4)
        pool.add_(name)
    assert {row["is_classification"] for row in rows} == {True, False}
    for row in rows:
        assert row["is_classification"] == ("river" in row["instruction"].lower())
        assert row["output"] in ("wet", "dry") or not row["is_classification"]
    written = SMALL.prompts * last.round
    for reason in (filters.TOO_SIMILAR, filters.TOO_SHORT, filters.BLOCKED_WORD, filters.PUNCTUATION_START):
        assert last.rejected[reason] == written, reason
    castles = last.rejected[filters.NO_EXAMPLE]
    assert castles > 0
    assert last.rejected[filters.CONTRADICTION] == 2 * castles
    # every prompt's first instruction is new: it is kept, without example, or over the total
    assert last.kept + castles + last.rejected.get(filters.OVER_TOTAL, 0) == written
    plain = sum(not row["is_classification"] for row in rows)
    assert last.rejected[filters.REPEATS_INPUT] >= plain
    assert last.prompts == 3 * written


def test_whole_tasks_come_from_one_prompt():
    steps = []
    rows = generate_instructions(
        SEEDS,
        echo,
        SelfInstruct(total=7, mode="whole", seed_tasks=5, generated_tasks=2, prompts=2),
        on_round=steps.append,
    )
    assert len(rows) == 7
    assert "is_classification" not in rows[0]
    assert all(row["input"] == "" and row["output"] for row in rows)
    last = steps[-1]
    assert last.prompts == 2 * last.round
    assert last.rejected[filters.MALFORMED] == last.rejected[filters.BLOCKED_WORD] == last.prompts


def test_prompts_show_six_seeds_and_two_generated_tasks():
    seen = []

    def spy(sent: list[str]) -> list[str]:
        seen.extend(prompt for prompt in sent if prompt.startswith(prompts.LIST))
        return echo(sent)

    rows = generate_instructions(SEEDS, spy, SMALL)
    own = {row["instruction"] for row in rows}
    lines = [line.split(". ", 1)[1] for line in seen[-1].splitlines() if line[:1].isdigit() and ". " in line]
    assert len(lines) == 8
    assert len(own & set(lines)) == 2
    assert not own & set(seen[0].splitlines())
    assert seen[0].endswith("\n9.")


def test_labelled_seeds_are_the_examples_of_their_kind():
    plain = [
        InstructionTask("Sing", InstructionExample("", "la"), False),
        InstructionTask("Which?", InstructionExample("a", "b"), True),
    ]
    rng = random.Random(0)
    assert sampling.sample_with_examples(plain, True, 6, rng) == [(plain[1], (plain[1].example,))]
    assert sampling.sample_with_examples(plain[:1], True, 3, rng)[0] in sampling.BUILT_IN_TASKS
    assert len(sampling.sample_both_kinds(plain[:1], 6, rng)) == 12


def test_another_seed_generates_other_rows():
    assert generate_instructions(SEEDS, echo, SMALL) == generate_instructions(SEEDS, echo, SMALL)
    assert generate_instructions(SEEDS, echo, SMALL) != generate_instructions(
        SEEDS, echo, SelfInstruct(total=12, prompts=3, seed=4)
    )


def test_an_endpoint_gets_sampling_parameters():
    class Recorder:
        name = "recorder"

        def __init__(self) -> None:
            self.calls: list[SamplingParams] = []

        def generate(self, sent: list[str], params: SamplingParams) -> list[str]:
            self.calls.append(params)
            return echo(sent)

    one, two = Recorder(), Recorder()
    generate_instructions(SEEDS, one, SMALL)
    generate_instructions(SEEDS, two, SMALL)
    assert one.calls == two.calls
    assert {call.temperature for call in one.calls} == {0.7, 0.0}
    free = [call for call in one.calls if call.temperature]
    assert len({call.seed for call in free}) == len(free) > 1
    assert {(call.max_tokens, call.stop) for call in one.calls} == {
        (1024, ("\n\n", "\n17.")),
        (3, ("\n",)),
        (350, ("Example 6", "\nTask:")),
    }


def test_an_endpoint_without_an_answer_is_an_error():
    with pytest.raises(DeltatuneError, match=r"no new instruction in 4 rounds \(12 malformed\)"):
        generate_instructions(SEEDS, lambda sent: [""] * len(sent), SelfInstruct(prompts=3, patience=4))
    assert generate_instructions(SEEDS, lambda sent: [""] * len(sent), SelfInstruct(prompts=3, rounds=2)) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda sent: [], "given 5 prompts and returned 0 texts"),
        (lambda sent: "text", "returned a str"),
        (lambda sent: [None] * len(sent), "returned a NoneType among its texts"),
    ],
)
def test_an_endpoint_that_returns_something_else_is_an_error(answer, message):
    with pytest.raises(DeltatuneError, match=message):
        generate_instructions(SEEDS, answer)


def test_seeds_are_checked():
    with pytest.raises(DeltatuneError, match=r"row 1 has no text in column 'output', did you mean 'outputs'\?"):
        seed_tasks([{"instruction": "a", "outputs": "b"}, *SEEDS])
    with pytest.raises(DeltatuneError, match="row 1 has an empty instruction"):
        seed_tasks([{"instruction": " ", "output": "b"}])
    with pytest.raises(DeltatuneError, match="set seed_tasks=3"):
        generate_instructions(SEEDS[:3], echo)
    with pytest.raises(DeltatuneError, match="no seed tasks"):
        generate_instructions([], echo)
    nested = {"instruction": "Add", "instances": [{"input": "1 2", "output": "3"}], "is_classification": False}
    assert seed_tasks([nested]) == [InstructionTask("Add", InstructionExample("1 2", "3"), False)]
    with pytest.raises(
        DeltatuneError, match=r"similarity must be above 0[^\n]*\n.*max_words=2 is less than min_words=4"
    ):
        SelfInstruct(similarity=1.5, max_words=2)


# ---- on disk

SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_self_instruct import SEEDS, SMALL, echo
from deltatune.prompting import generate_instructions
def slow(sent):
    time.sleep(0.15)
    return echo(sent)
slow.__qualname__ = "echo"
generate_instructions(SEEDS, slow, SMALL, sys.argv[1])
"""


def files(out: Path) -> dict[str, bytes]:
    """All files that a run wrote."""
    return {path.name.removeprefix(out.stem): path.read_bytes() for path in out.parent.glob(f"{out.stem}*")}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_end(tmp_path):
    whole = generate_instructions(SEEDS, echo, SMALL, tmp_path / "whole.jsonl")
    assert [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()] == whole
    out = tmp_path / "killed.jsonl"
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", script, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (out.is_file() and out.read_bytes()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(out.read_bytes()) < len((tmp_path / "whole.jsonl").read_bytes())
    assert generate_instructions(SEEDS, echo, SMALL, out) == whole
    assert files(out) == files(tmp_path / "whole.jsonl")


def test_lines_of_an_unfinished_round_are_dropped(tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "some.jsonl"
    generate_instructions(SEEDS, echo, SMALL, whole)
    generate_instructions(SEEDS, echo, SelfInstruct(**{**SMALL.__dict__, "rounds": 2}), out)
    with out.open("a") as file:
        file.write('{"instruction": "half of a round", "round": 3}\n{"instruction": "half of a li')
    generate_instructions(SEEDS, echo, SMALL, out)
    assert files(out) == files(whole)


def test_a_killed_first_round_starts_again(tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "some.jsonl"
    generate_instructions(SEEDS, echo, SMALL, whole)
    out.with_name("some.rejected.jsonl").write_text('{"reason": "too short", "round": 1}\n{"rea')
    generate_instructions(SEEDS, echo, SMALL, out)
    assert files(out) == files(whole)


def test_a_finished_run_sends_nothing_and_a_larger_total_resumes(tmp_path):
    out = tmp_path / "instructions.jsonl"
    rows = generate_instructions(SEEDS, echo, SMALL, out)

    def echo_(sent: list[str]) -> list[str]:
        raise AssertionError("asked again")

    echo_.__qualname__ = "echo"
    assert generate_instructions(SEEDS, echo_, SMALL, out) == rows
    more = generate_instructions(SEEDS, echo, SelfInstruct(**{**SMALL.__dict__, "total": 15}), out)
    assert more[: len(rows)] == rows
    assert len({row["instruction"] for row in more}) == 15


def test_the_file_of_another_run_is_not_changed(tmp_path):
    out = tmp_path / "instructions.jsonl"
    generate_instructions(SEEDS, echo, SMALL, out)
    before = files(out)
    with pytest.raises(DeltatuneError, match=r"started with other settings(.|\n)*seed was 3, now it is 4"):
        generate_instructions(SEEDS, echo, SelfInstruct(**{**SMALL.__dict__, "seed": 4}), out)
    with pytest.raises(DeltatuneError, match="seeds was"):
        generate_instructions(SEEDS[1:], echo, SMALL, out)
    assert files(out) == before
    out.write_bytes(before[".jsonl"].replace(b"river", b"lake!"))
    with pytest.raises(DeltatuneError, match="was modified since"):
        generate_instructions(SEEDS, echo, SMALL, out)
    out.write_bytes(before[".jsonl"] + b'{"instruction": "by hand"}\n')
    with pytest.raises(DeltatuneError, match="lines that were not generated here"):
        generate_instructions(SEEDS, echo, SMALL, out)
    out.with_name("instructions.state.json").unlink()
    with pytest.raises(DeltatuneError, match="was not generated here"):
        generate_instructions(SEEDS, echo, SMALL, out)
    assert out.read_bytes().endswith(b'"by hand"}\n')
    with pytest.raises(DeltatuneError, match=r"must end in \.jsonl"):
        generate_instructions(SEEDS, echo, SMALL, tmp_path / "instructions.csv")


def test_two_runs_that_write_one_file_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "instructions.jsonl"
    tried = []

    def nested(sent: list[str]) -> list[str]:
        if not tried:
            tried.append(True)
            with pytest.raises(DeltatuneError, match="is in use by another run of this process"):
                generate_instructions(SEEDS, nested, SMALL, out)
        return echo(sent)

    assert generate_instructions(SEEDS, nested, SMALL, out)
    assert tried


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_in_a_round_is_a_plain_error(tmp_path, monkeypatch, error):
    whole, out, calls = tmp_path / "whole.jsonl", tmp_path / "some.jsonl", []
    generate_instructions(SEEDS, echo, SMALL, whole)

    def full(descriptor):
        raise OSError(error, os.strerror(error))

    def third(sent):
        calls.append(sent)
        if len(calls) == 3:
            monkeypatch.setattr("deltatune.prompting.self_instruct.saved_state.os.fsync", full)
        return echo(sent)

    with pytest.raises(CannotWrite, match=r"some\.(rejected\.)?jsonl: the .*it needs at least [\d,]+ bytes"):
        generate_instructions(SEEDS, third, SMALL, out)
    monkeypatch.undo()
    generate_instructions(SEEDS, echo, SMALL, out)
    assert files(out) == files(whole)


def test_an_endpoint_that_fails_at_once_leaves_no_files(tmp_path):
    with pytest.raises(DeltatuneError, match="returned 0 texts"):
        generate_instructions(SEEDS, lambda sent: [], SMALL, tmp_path / "instructions.jsonl")
    assert not list(tmp_path.iterdir())


def test_the_command_needs_one_endpoint(tmp_path):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("\n".join(map(json.dumps, SEEDS)))
    out = "--out", tmp_path / "instructions.jsonl"
    assert "name a model" in ran("self-instruct", seeds, *out).err
    both = ran("self-instruct", seeds, *out, "--url", "http://localhost:1", "--model", "x", "--omit", "tempo")
    assert both.code == 2
    assert "give one of the two" in both.err
    assert "--url needs --name" in both.err
    assert "--omit tempo: the fields of a request are max_tokens, temperature" in both.err


def test_the_old_name_of_the_command_is_an_error_with_the_new_one():
    done = ran("grow", "seeds.jsonl")
    assert done.code == 2
    assert "the command 'grow' is now 'self-instruct'" in done.err


def test_a_state_file_with_earlier_names_resumes(tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "some.jsonl"
    generate_instructions(SEEDS, echo, SMALL, whole)
    generate_instructions(SEEDS, echo, SelfInstruct(**{**SMALL.__dict__, "rounds": 2}), out)
    path = out.with_name("some.state.json")
    state = json.loads(path.read_text())
    earlier = {new: old for old, new in OLD_NAMES.items()}
    state["identity"] = {earlier.get(name, name): value for name, value in state["identity"].items()}
    assert {"writer", "human", "own", "avoid"} <= set(state["identity"])
    path.write_text(json.dumps(state))
    generate_instructions(SEEDS, echo, SMALL, out)
    assert files(out) == files(whole)
