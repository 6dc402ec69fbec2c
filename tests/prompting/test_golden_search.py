"""Searches for label words and triggers against numbers that the code of the papers computed: see golden/README.md."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deltatune.prompting.prompt_search.blank_readings import read_blanks
from deltatune.prompting.prompt_search.label_word_search import (
    accuracy_of,
    best_pairings,
    class_means,
    label_token_scores,
    likely_words,
)
from deltatune.prompting.prompt_search.template_generation import Generator, Placement, span_inputs, write_spans
from deltatune.prompting.prompt_search.trigger_gradients import (
    TRIGGERS,
    TriggerBatch,
    TriggerRows,
    allowed_tokens,
    candidate_tokens,
    embedding_paths,
    with_triggers,
)
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.training.session import Session
from support.golden_cases import close, tensors
from support.golden_prompting import golden_session, language_model, settings

# ---- LM-BFF: label words

WORDS = settings("prompting_lm_bff_words")
BEGIN_A_WORD = [i for i, word in enumerate(WORDS["vocabulary"]) if word.startswith("Ġ")]


def lm_bff() -> tuple[dict[str, torch.Tensor], Any, Any]:
    case = tensors("prompting_lm_bff_words")
    return case, case["input.logits"].numpy(), case["input.labels"].numpy()


def test_likely_words_are_those_of_lm_bff() -> None:
    """Only tokens that begin a word are candidates."""
    case, logits, labels = lm_bff()
    means = class_means(logits, labels, 3)
    close(torch.from_numpy(means).float(), case["output.class_means"])
    found = likely_words(means[:, BEGIN_A_WORD], WORDS["k_likely"])
    assert [[BEGIN_A_WORD[i] for i in of_class] for of_class in found] == case["output.likely"].tolist()


def test_pairings_have_the_accuracy_of_lm_bff() -> None:
    case, logits, labels = lm_bff()
    for words, accuracy in zip(case["output.pairings"].tolist(), case["output.accuracy"].tolist(), strict=True):
        assert accuracy_of(logits, labels, words) == pytest.approx(accuracy, abs=1e-6)


def test_the_best_pairing_is_one_of_the_best_of_lm_bff() -> None:
    """Its code also pairs a word with itself, which cannot stand for two classes here."""
    case, logits, labels = lm_bff()
    accuracies = {
        tuple(words): accuracy
        for words, accuracy in zip(case["output.pairings"].tolist(), case["output.accuracy"].tolist(), strict=True)
        if len(set(words)) == len(words)
    }
    found = best_pairings(logits, labels, case["output.likely"].tolist(), len(accuracies))
    assert {pairing.words for pairing in found} == set(accuracies)
    listed = [pairing.accuracy for pairing in found]
    assert listed == sorted(listed, reverse=True)
    for pairing in found:
        assert pairing.accuracy == pytest.approx(accuracies[pairing.words], abs=1e-6)
    assert found[0].accuracy == pytest.approx(case["output.best_accuracy"].item(), abs=1e-6)


# ---- LM-BFF: templates that a T5 writes

WRITTEN = settings("prompting_lm_bff_templates")


def writer() -> Generator:
    """The case's T5 with a tokenizer of its words."""
    vocabulary = {word: i for i, word in enumerate(WRITTEN["vocabulary"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sentinels = [f"<extra_id_{i}>" for i in range(4)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=sentinels,
    )  # fmt: skip
    return Generator(language_model("prompting_lm_bff_templates"), tokenizer)


@pytest.mark.parametrize("placement", ["after", "before"])
def test_templates_are_written_as_by_lm_bff(placement: Placement) -> None:
    """What the encoder reads, the spans around the word, and their scores; its beams begin with the first sentinel."""
    case, generator = tensors("prompting_lm_bff_templates"), writer()
    task = LabelWords(labels=("0", "1"), template="{text} {mask}", words=(("bad",), ("great",)))
    rows = [{"text": row["text"][0], "label": row["label"]} for row in WRITTEN["rows"]]
    inputs = span_inputs(generator, task, rows, placement, between=False)
    mask = case[f"input.{placement}.mask"].bool()
    assert inputs == [ids[real].tolist() for ids, real in zip(case[f"input.{placement}.ids"], mask, strict=True)]
    written = write_spans(generator, inputs, WRITTEN["beam"])
    first, second, third = generator.sentinels
    found = [[first, *before, second, *after, third] for (before, after), _ in written]
    assert found == [[token for token in ids if token >= 0] for ids in case[f"output.{placement}.ids"].tolist()]
    close(torch.tensor([score for _, score in written]), case[f"output.{placement}.scores"])


# ---- AutoPrompt: triggers

AUTOPROMPT = settings("prompting_autoprompt")
TEMPLATE = f"{{text}} {TRIGGERS} {{mask}}."
STEPS = [[0, 1, 2], [3, 4, 5]]
"""Rows of the two batches."""


def triggers() -> tuple[Session, TriggerRows, list[TriggerBatch], dict[str, torch.Tensor]]:
    """The rows of the case in their template, its two batches and its tensors."""
    case = tensors("prompting_autoprompt")
    words = tuple(tuple(AUTOPROMPT["label_words"][label]) for label in ("0", "1"))
    plain = TEMPLATE.replace(TRIGGERS, "very")
    task = LabelWords(labels=("0", "1"), template=plain, words=words, scoring="probability", max_length=48)
    trigger_task = with_triggers(task, TEMPLATE, case["input.trigger"][0].tolist())
    session = golden_session("prompting_bert", trigger_task)
    rows = [
        {"text": text, "label": str(label)}
        for text, label in zip(AUTOPROMPT["texts"], AUTOPROMPT["labels"], strict=True)
    ]
    made = TriggerRows(session, trigger_task, TEMPLATE, 3, rows)
    return session, made, [made.batch(numbers) for numbers in STEPS], case


def row_losses(session: Session, rows: TriggerRows, batch: TriggerBatch, ids: torch.Tensor) -> torch.Tensor:
    """-log p(words of the class) of each row (B,)."""
    with session.host.using({session.name: 1.0}, training=False), torch.no_grad():
        return -rows.scores(batch, ids).gather(1, batch.labels[:, None])[:, 0]


def test_rows_with_triggers_have_the_ids_and_losses_of_autoprompt() -> None:
    session, rows, batches, case = triggers()
    for number, batch in enumerate(batches):
        theirs = case[f"input.batch{number}.input_ids"].masked_scatter(
            case[f"input.batch{number}.trigger_mask"].bool(), case["input.trigger"].repeat(3, 1)
        )
        ids = batch.filled(case["input.trigger"][0])["input_ids"][:, : theirs.shape[1]]
        assert ids.tolist() == theirs.tolist()
        assert ((batch.numbers["input_ids"] >= 0)[:, : theirs.shape[1]]).equal(
            case[f"input.batch{number}.trigger_mask"].bool()
        )
        losses = row_losses(session, rows, batch, case["input.trigger"][0])
        close(losses, case[f"output.batch{number}.row_losses"])
        close(losses.mean(), case[f"output.batch{number}.loss"])


def test_gradients_and_candidates_are_those_of_autoprompt() -> None:
    session, rows, batches, case = triggers()
    with session.host.using({session.name: 1.0}, training=False):
        gradients, loss = rows.gradients(batches, case["input.trigger"][0])
    (path,) = embedding_paths(session.host)
    close(gradients[path], case["output.gradient"])
    close(torch.tensor(loss), (case["output.batch0.loss"] + case["output.batch1.loss"]) / 2)
    vocabulary = len(case["input.filter"])
    refused = case["input.filter"].nonzero()[:, 0].tolist()
    device = torch.device("cpu")
    for place in range(3):
        for name, left_out in (("candidates", []), ("filtered", refused)):
            allowed = allowed_tokens(vocabulary, left_out, device)
            found = candidate_tokens(session.host, gradients, place, allowed, AUTOPROMPT["num_cand"])
            assert found == case[f"output.{name}_{place}"].tolist()


def test_candidates_have_the_scores_of_autoprompt() -> None:
    session, rows, batches, case = triggers()
    for place in range(3):
        for number, token in enumerate(case[f"output.filtered_{place}"].tolist()):
            ids = case["input.trigger"][0].clone()
            ids[place] = token
            total, correct = 0.0, 0
            for batch in batches:
                total -= float(row_losses(session, rows, batch, ids).sum())
                with session.host.using({session.name: 1.0}, training=False), torch.no_grad():
                    correct += int((rows.scores(batch, ids).argmax(1) == batch.labels).sum())
            close(torch.tensor(total), case[f"output.loss_{place}"][number])
            assert correct == int(case[f"output.accuracy_{place}"][number])


# ---- AutoPrompt: label words of a linear classifier


def test_states_at_the_blank_are_those_of_autoprompt() -> None:
    """What the last map of the head reads, after the head's transform; the triggers are mask tokens there."""
    session, rows, _, case = triggers()
    mask = session.tokenizer.mask_token_id
    labelled = [{"text": text, "label": "0"} for text in AUTOPROMPT["texts"]]
    readings = read_blanks(session, with_triggers(rows.task, TEMPLATE, [mask] * 3), labelled, range(5))
    close(readings.states, case["output.states"])


def test_scores_of_label_tokens_are_those_of_autoprompt() -> None:
    case = tensors("prompting_autoprompt")
    vectors = tensors("prompting_bert")["base.bert.embeddings.word_embeddings.weight"]
    scores = label_token_scores(case["adapter.weight"], vectors)
    close(scores.exp().float(), case["output.label_scores"])
    assert scores.topk(AUTOPROMPT["k"]).indices.tolist() == case["output.label_top"].tolist()
