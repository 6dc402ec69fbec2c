"""Prompting against numbers that the code of the papers computed: see golden/README.md."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from deltatune.prompting.facts.fact_ranks import WordingRanks
from deltatune.prompting.facts.fact_report import fact_report
from deltatune.prompting.in_context.content_free import content_free_calibration
from deltatune.prompting.in_context.meta_icl import learned_tokens
from deltatune.prompting.published_prompts import published_prompt, with_columns
from deltatune.tasks.fact_completion import FactCompletion
from deltatune.tasks.label_words.content_free_scores import log_content_free
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from deltatune.tasks.label_words.prompt_batches import word_sequences
from deltatune.tasks.task import IGNORED
from support.golden_cases import close, tensors
from support.golden_prompting import golden_session, golden_tokenizer, scores, settings

COLUMNS = ("first", "second")


def label_words(prompt: str, index: int, columns: tuple[str, ...], **fields: Any) -> LabelWords:
    """The task of a published prompt on these columns."""
    published = published_prompt(prompt)
    template = with_columns(published.templates[index], columns)
    return LabelWords(**{"template": template, "text": columns, **fields})


# ---- PET: patterns, verbalizers, losses

PET_NAMES = {
    ("yelp-polarity", 0): ("pet-yelp-polarity", 0),
    ("yelp-polarity", 1): ("pet-yelp-polarity", 1),
    ("yelp-polarity", 2): ("pet-yelp-polarity", 2),
    ("yelp-polarity", 3): ("pet-yelp-polarity", 3),
    ("rte", 0): ("pet-rte-no-yes", 0),
    ("rte", 1): ("pet-rte-no-yes", 1),
    ("rte", 2): ("pet-rte-no-yes", 2),
    ("rte", 3): ("pet-rte-no-yes", 3),
    ("rte", 4): ("pet-rte-true-false", 0),
    ("mnli", 0): ("pet-mnli-wrong-right", 0),
    ("mnli", 1): ("pet-mnli-wrong-right", 1),
    ("mnli", 2): ("pet-mnli-no-yes", 0),
    **{("agnews", i): ("pet-agnews", i) for i in range(6)},
}
"""PET's task and number of a pattern -> the published prompt and its template."""
PET = list(enumerate(settings("prompting_pet")["cases"]))


def pet_task(facts: dict[str, Any], **fields: Any) -> LabelWords:
    name, index = PET_NAMES[facts["task"], facts["pattern"]]
    columns = COLUMNS[: len(facts["rows"][0])]
    words = tuple(tuple(of_class) for of_class in facts["words"])
    labels, length = tuple(facts["labels"]), facts["max_length"]
    return label_words(name, index, columns, labels=labels, words=words, max_length=length, **fields)


def pet_rows(facts: dict[str, Any]) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, texts, strict=False)) for texts in facts["rows"]]


@pytest.mark.parametrize(("number", "facts"), PET, ids=lambda value: value["task"] if isinstance(value, dict) else None)
def test_published_patterns_make_the_ids_and_logits_of_pet(number: int, facts: dict[str, Any]) -> None:
    case = tensors("prompting_pet")
    session = golden_session("prompting_bert", pet_task(facts, scoring="logit"))
    encoded = session.encode(pet_rows(facts), labelled=False)
    real = case[f"input.{number:02d}.mask"].bool()
    for row, ids, types, mask in zip(
        encoded, case[f"input.{number:02d}.ids"], case[f"input.{number:02d}.types"], real, strict=True
    ):
        read = word_sequences(row, encoder_decoder=False)
        assert read.sequences[0] == ids[mask].tolist()
        assert read.types is not None
        assert read.types[0] == types[mask].tolist()
    logits = scores(session, pet_rows(facts))
    close(logits, case[f"output.{number:02d}.logits"])
    close(F.cross_entropy(logits, case[f"input.{number:02d}.labels"]), case[f"output.{number:02d}.loss"])
    if facts["max_length"] == 24:
        assert encoded.truncated == 1


@pytest.mark.parametrize(("number", "facts"), PET[:6], ids=lambda value: None)
def test_likelihoods_differ_from_the_logits_of_pet_by_a_constant(number: int, facts: dict[str, Any]) -> None:
    """For words of one token the mean log-likelihood is the mean logit, less what all classes share."""
    found = scores(golden_session("prompting_bert", pet_task(facts)), pet_rows(facts))
    theirs = tensors("prompting_pet")[f"output.{number:02d}.logits"]
    close(found.log_softmax(1), theirs.log_softmax(1))


@pytest.mark.parametrize(
    "facts", [facts for _, facts in PET if facts["task"] != "yelp-polarity"], ids=lambda value: None
)
def test_published_words_are_those_of_pet(facts: dict[str, Any]) -> None:
    """The classes of a data set may be in another order than PET's, and AG News's have names instead of numbers."""
    published = published_prompt(PET_NAMES[facts["task"], facts["pattern"]][0]).words
    theirs = [tuple(of_class) for of_class in facts["words"]]
    if facts["task"] == "agnews":
        assert list(published.values()) == theirs
    else:
        assert dict(published) == dict(zip(facts["labels"], theirs, strict=True))


# ---- LM-BFF: templates

LM_BFF = list(enumerate(settings("prompting_lm_bff_inputs")["cases"]))


@pytest.mark.parametrize(
    ("number", "facts"), LM_BFF, ids=lambda value: value["prompt"] if isinstance(value, dict) else None
)
def test_manual_templates_make_the_ids_of_lm_bff(number: int, facts: dict[str, Any]) -> None:
    columns = COLUMNS[: len(facts["rows"][0])]
    task = label_words(facts["prompt"], 0, columns, labels=("a", "b"), words=(("good",), ("bad",)), max_length=40)
    rows = [dict(zip(COLUMNS, texts, strict=False)) for texts in facts["rows"]]
    encoded = task.encode(rows, golden_tokenizer("prompting_bert"), labelled=False, joined=False)
    case = tensors("prompting_lm_bff_inputs", f"input.{number:02d}.")
    for row, ids, mask, blank in zip(encoded, case["ids"], case["mask"].bool(), case["blank"], strict=True):
        read = word_sequences(row, encoder_decoder=False)
        assert read.sequences[0] == ids[mask].tolist()
        assert read.scored[0][0][:2] == (0, int(blank))


# ---- contextual calibration: prompts and probabilities

FORMATS = list(enumerate(settings("prompting_calibration")["cases"]))


def in_context_task(facts: dict[str, Any]) -> tuple[LabelWords, list[dict[str, str]]]:
    """The in-context format of a case with its demonstrations, and its queries as rows."""
    name = f"in-context-{facts['format']}"
    published = published_prompt(name)
    columns = ("text",) if len(published.texts) == 1 else COLUMNS
    words = tuple(tuple(of_class) for of_class in facts["classes"])
    task = label_words(name, 0, columns, labels=tuple(map(str, range(len(words)))), words=words, max_length=192)
    shown = [
        task.templates[0].fill(dict(zip(columns, texts, strict=True)), words[label][0])
        for *texts, label in facts["demonstrations"]
    ]
    lead = [published.instruction.rstrip("\n")] if published.instruction else []
    queries = [query if isinstance(query, list) else [query] for query in facts["queries"]]
    rows = [dict(zip(columns, texts, strict=True)) for texts in queries]
    sets = ((*lead, *shown),) if lead or shown else ()
    return replace(task, scoring="probability", demonstrations=sets), rows


@pytest.mark.parametrize(("number", "facts"), FORMATS, ids=lambda value: None)
def test_in_context_formats_make_the_published_prompts(number: int, facts: dict[str, Any]) -> None:
    """A blank at the very start of RTE's format is left out here."""
    task, rows = in_context_task(facts)
    tokenizer = golden_tokenizer("prompting_gpt2")
    encoded = task.encode(rows, tokenizer, labelled=False)
    for row, prompt in zip(encoded, facts["prompts"], strict=True):
        assert tokenizer.decode(word_sequences(row, encoder_decoder=False).sequences[0]) == prompt.lstrip()


@pytest.mark.parametrize(("number", "facts"), FORMATS[:4], ids=lambda value: None)
def test_probabilities_of_words_are_those_of_the_calibration_code(number: int, facts: dict[str, Any]) -> None:
    task, rows = in_context_task(facts)
    found = scores(golden_session("prompting_gpt2", task), rows)
    close(found.exp(), tensors("prompting_calibration")[f"input.{number}.label_probs"])


@pytest.mark.parametrize(("number", "facts"), FORMATS[:4], ids=lambda value: None)
def test_calibration_divides_by_what_texts_without_content_get(number: int, facts: dict[str, Any]) -> None:
    """p_cf and the answers of the diagonal form; an instruction stands in front as a demonstration."""
    case = tensors("prompting_calibration")
    task, rows = in_context_task(facts)
    session = golden_session("prompting_gpt2", task)
    calibration = content_free_calibration(session)
    close(torch.tensor(calibration[0]).neg().exp(), case[f"output.{number}.p_cf"])
    close(torch.tensor(calibration[0]).exp(), case[f"output.{number}.diagonal"])
    found = scores(replace(session, task=replace(task, calibration=calibration)), rows)
    close(found.softmax(1), F.normalize(case[f"output.{number}.diagonal_scores"], p=1, dim=1))
    assert found.argmax(1).tolist() == case[f"output.{number}.diagonal_answers"].tolist()
    assert scores(session, rows).argmax(1).tolist() == case[f"output.{number}.plain_answers"].tolist()


def test_calibration_of_given_probabilities() -> None:
    case = tensors("prompting_calibration")
    preferred = torch.from_numpy(log_content_free(case["input.drawn.content_free"].log().numpy(), "probability"))
    close(preferred.exp().float(), case["output.drawn.p_cf"])
    calibrated = case["input.drawn.label_probs"].log() - preferred
    assert calibrated.argmax(1).tolist() == case["output.drawn.diagonal_answers"].tolist()


# ---- MetaICL: direct and channel

META_ICL = settings("prompting_metaicl")


def meta_icl_task(method: str, shown: bool) -> LabelWords:
    """Input, newline, output; the channel form has the output first and scores the input."""
    direct = method == "direct"
    options, texts = tuple(META_ICL["options"]), ("input", "output") if direct else ("output", "input")
    examples = tuple("\n".join(row[name] for name in texts) for row in META_ICL["train"])
    return LabelWords(
        labels=options,
        words=tuple((option,) for option in options),
        template="{input}\n{mask}" if direct else "{mask}\n{input}",
        scoring="likelihood" if direct else "channel",
        demonstrations=(examples,) if shown else (),
        separator="\n\n\n",
        max_length=96,
    )


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("method", ["direct", "channel"])
def test_rows_are_read_and_answered_as_in_metaicl(method: str, shown: bool) -> None:
    """The same tokens; its loss of the direct form also has the newline before the answer, which all options share."""
    case, key = tensors("prompting_metaicl"), f"{method}.{'shown' if shown else 'alone'}"
    ids, mask = case[f"input.{key}.ids"], case[f"input.{key}.mask"].bool()
    scored = case[f"output.{key}.scored"].bool()
    session = golden_session("prompting_gpt2", meta_icl_task(method, shown))
    options = len(META_ICL["options"])
    for i, row in enumerate(session.encode(META_ICL["test"], labelled=False)):
        read = word_sequences(row, encoder_decoder=False)
        for option in range(options):
            theirs = ids[i * options + option][mask[i * options + option]].tolist()
            (number,) = {place[0] for place in read.scored[option]}
            assert read.sequences[number] == theirs[:-1], "the last token is predicted, and read by nothing"
            positions = [position + 1 for _, position, _ in read.scored[option]]
            wanted = scored[i * options + option].nonzero()[:, 0].tolist()
            assert positions == (wanted[1:] if method == "direct" else wanted)
    found, losses = scores(session, META_ICL["test"]), case[f"output.{key}.losses"]
    if method == "channel":
        close(found, -losses)
    else:  # two tokens in each of its answers
        close(found - found[:, :1], -2 * (losses - losses[:, :1]), loose=2)
    assert found.argmax(1).tolist() == case[f"output.{key}.answers"].tolist()


@pytest.mark.parametrize("method", ["direct", "channel"])
def test_training_rows_are_those_of_metaicl(method: str) -> None:
    """Each row behind the others, with labels at the end alone; its direct form also learns the newline."""
    case, task = tensors("prompting_metaicl", f"input.{method}.training."), meta_icl_task(method, False)
    outputs = tensors("prompting_metaicl", f"output.{method}.training.")
    session = golden_session("prompting_gpt2", task)
    examples = meta_icl_task(method, True).demonstrations[0]
    for i, numbers in enumerate(META_ICL["training_demonstrations"]):
        row = {**META_ICL["train"][i], "label": META_ICL["train"][i]["output"], DEMONSTRATIONS: []}
        row[DEMONSTRATIONS] = [examples[number] for number in numbers]
        learned = learned_tokens(session.encode([row])[0], task)
        assert learned["input_ids"] == case["ids"][i][case["mask"][i].bool()].tolist()
        labelled = [position for position, label in enumerate(learned["labels"]) if label != IGNORED]
        wanted = outputs["scored"][i].nonzero()[:, 0].tolist()
        assert labelled == (wanted[1:] if method == "direct" else wanted)
        ids = torch.tensor([learned["input_ids"]])
        with torch.no_grad():
            logits = session.host.model(ids).logits[0]
        close(F.cross_entropy(logits[[each - 1 for each in wanted]], ids[0, wanted]), outputs["losses"][i])


# ---- LAMA: ranks


@pytest.mark.parametrize("ranked", ["all", "candidates"])
def test_ranks_are_those_of_lama(ranked: str) -> None:
    case = tensors("prompting_lama")
    candidates = tuple(case["input.candidates"].tolist()) if ranked == "candidates" else ()
    task = FactCompletion(candidates=candidates, vocabulary=50, top=5)
    at_blank = case["input.log_probs"][torch.arange(10), case["input.blank"]]  # (10, 50)
    statistics = task.extra_statistics({"logits": (at_blank,)}, {"labels": case["input.objects"]})
    assert statistics is not None
    ranks = statistics[:, 0]
    close((1 / ranks).float(), case[f"output.{ranked}.reciprocal_rank"])
    for k in (1, 5, 10):
        close((ranks <= k).float(), case[f"output.{ranked}.p_at_{k}"])
    assert statistics[:, 1].tolist() == case[f"output.{ranked}.top"][:, 0].tolist()
    close((ranks == 1).float().mean(), case[f"output.{ranked}.micro"])


@pytest.mark.parametrize("ranked", ["all", "candidates"])
def test_means_over_facts_and_relations_are_those_of_lama(ranked: str) -> None:
    """Its headline number is the mean over the relations, whatever their size."""
    case = tensors("prompting_lama")
    ranks = (1 / case[f"output.{ranked}.reciprocal_rank"]).round().int()
    relations = {
        f"P{number}": [
            WordingRanks("{subject} is {mask}.", [*ranks[case["input.relation"] == number].tolist()], [], {})
        ]
        for number in range(3)
    }
    objects = {name: ["x"] * len(wordings[0].ranks) for name, wordings in relations.items()}
    means = fact_report(relations, objects, (1, 5), {})["means"]["first"]
    assert means["macro"]["p@1"] == pytest.approx(case[f"output.{ranked}.macro"].item(), abs=1e-6)
    assert means["micro"]["p@1"] == pytest.approx(case[f"output.{ranked}.micro"].item(), abs=1e-6)
    assert means["micro"]["p@5"] == pytest.approx(case[f"output.{ranked}.p_at_5"].mean().item(), abs=1e-6)
