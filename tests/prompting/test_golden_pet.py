"""PET and iPET against numbers that the code of the paper computed: see golden/README.md."""

from typing import Any

import numpy as np
import pytest
import torch

from deltatune.prompting.pet import next_sets
from deltatune.prompting.pet.next_sets import added_rows, labelled_by, mean_scores
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.soft_labels import SoftLabels
from deltatune.training.auxiliary_loss import PREFIX, WithMaskedLM
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.task_model import TaskModel
from support.golden_cases import close, tensors
from support.golden_prompting import golden_session, settings

PET = settings("prompting_pet_ensemble")
CASE = tensors("prompting_pet_ensemble")
WEIGHTS = {"mean": [1.0] * 5, "wmean": CASE["input.accuracy"].tolist()}
"""Weights of the models for each of PET's two ways to merge them."""


@pytest.mark.parametrize("way", WEIGHTS)
def test_the_ensemble_is_that_of_pet(way: str) -> None:
    found = mean_scores([scores.numpy() for scores in CASE["input.logits"]], WEIGHTS[way])
    close(torch.from_numpy(found).float(), CASE[f"output.{way}"])


@pytest.mark.parametrize("temperature", PET["temperatures"])
def test_the_loss_of_the_distillation_is_that_of_pet(temperature: int) -> None:
    predictions = CASE["input.predictions"].clone().requires_grad_()
    task = SoftLabels(labels=("a", "b", "c"), temperature=float(temperature))
    loss = task.loss(predictions, CASE["input.targets"]) / len(predictions)
    close(loss.detach(), CASE[f"output.distillation_{temperature}"])
    loss.backward()
    close(predictions.grad, CASE[f"grad.distillation_{temperature}"])


def test_generations_are_as_large_as_those_of_ipet() -> None:
    """With the proportions of the labelled rows; the labelled rows themselves come on top."""
    labelled = [PET["train_labels"].count(label) for label in PET["labels"]]
    for generation, wanted in enumerate(CASE["output.generation_classes"].tolist(), 1):
        assert added_rows(labelled, PET["scale_factor"], generation) == wanted
        assert sum(wanted) <= CASE["output.generation_sizes"][generation - 1]


@pytest.fixture
def chances(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The chances by which rows are drawn, in place of the draw: the first rows are taken."""
    seen: list[torch.Tensor] = []

    def first(given: torch.Tensor, number: int, **_: Any) -> torch.Tensor:
        seen.append(given / given.sum())
        return torch.arange(number)

    monkeypatch.setattr(torch, "multinomial", first)
    return seen


@pytest.mark.parametrize("way", [*WEIGHTS, "most_likely"])
def test_rows_of_the_next_generation_are_drawn_as_in_ipet(way: str, chances: list[torch.Tensor]) -> None:
    """From the rows that two models give to a class, or the six likeliest ones, in proportion to their probability."""
    others = [scores.numpy() for scores in CASE["input.logits"][: int(CASE["output.models"])]]
    most = PET["n_most_likely"] if way == "most_likely" else 0
    weights = WEIGHTS.get(way, WEIGHTS["mean"])[: len(others)]
    members = [CASE[f"output.{way}.members_{label}"].tolist() for label in PET["labels"]]
    labelled_by(others, weights, [2, 2, 2], 1.0, torch.Generator(), most)
    for label, found in zip(PET["labels"], chances, strict=True):
        wanted = CASE[f"output.{way}.chances_{label}"]
        close(found.float().sort().values, wanted.sort().values)
    whole = labelled_by(others, weights, [len(rows) for rows in members], 1.0, torch.Generator(), most)
    for number, rows in enumerate(members):
        assert sorted(row for row, of_class in whole if of_class == number) == sorted(rows)


def test_as_many_models_label_the_rows_of_another_as_in_ipet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of five models are two: halves go to the even number."""
    members: list[int] = []
    merge = next_sets.mean_scores

    def counted(scores: Any, weights: Any) -> Any:
        members.append(len(scores))
        return merge(scores, weights)

    monkeypatch.setattr(next_sets, "mean_scores", counted)
    labelled_by(
        [scores.numpy() for scores in CASE["input.logits"]], WEIGHTS["mean"], [1, 1, 1], PET["logits_percentage"],
        torch.Generator(),
    )  # fmt: skip
    assert members == [int(CASE["output.models"])]


@pytest.mark.parametrize(("total", "weight"), [("default", 1e-4), ("half", 0.5)])
def test_the_loss_with_language_modelling_beside_it_is_that_of_pet(total: str, weight: float) -> None:
    case, facts = tensors("prompting_pet"), settings("prompting_pet")["cases"][0]
    task = LabelWords(
        labels=tuple(facts["labels"]),
        template="It was {mask}. {text}",
        words=tuple(tuple(of_class) for of_class in facts["words"]),
        scoring="logit",
        max_length=64,
    )
    session = golden_session("prompting_bert", task)
    rows = [
        {"text": text, "label": facts["labels"][number]}
        for (text,), number in zip(facts["rows"], case["input.00.labels"].tolist(), strict=True)
    ]
    encoded = session.encode(rows)
    batch = adapter_collator(session.host, session.name, session.tokenizer, encoded)(list(encoded))
    further = {
        "input_ids": case["input.lm.ids"],
        "attention_mask": case["input.00.mask"],
        "token_type_ids": case["input.00.types"],
        "labels": case["input.lm.labels"],
    }
    model = WithMaskedLM(TaskModel(session.host, session.name, task), weight)
    with session.host.using({session.name: 1.0}, training=False), torch.no_grad():
        outputs = model(**batch, **{f"{PREFIX}{name}": tensor for name, tensor in further.items()})
    close(outputs["loss"], case[f"output.lm.total_{total}"])
    assert np.isclose(1 - weight, settings("prompting_pet")["alpha"][total])
