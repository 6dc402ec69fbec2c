"""Soft labels: the divergence from a teacher's scores, by hand, and its gradient."""

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError
from deltatune.tasks.classification import Classify
from deltatune.tasks.soft_labels import SoftLabels, soft_labels, with_scores
from deltatune.tasks.task import Encoded
from support import models

TASK = Classify(labels=("no", "yes", "maybe"), max_length=32)


def test_the_loss_is_the_divergence_at_the_temperature_times_its_square():
    logits, teacher = (
        torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]),
        torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 4.0]]),
    )
    by_hand = 0.0
    for row in range(2):
        p, q = np.exp(teacher[row].numpy() / 2), np.exp(logits[row].numpy() / 2)
        p, q = p / p.sum(), q / q.sum()
        by_hand += 4 * float((p * np.log(p / q)).sum())
    task = soft_labels(TASK, 2.0)
    assert float(task.loss(logits, teacher)) == pytest.approx(by_hand, rel=1e-5)
    assert float(task.loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    assert task.items(teacher) == 2


def test_at_a_high_temperature_the_gradient_matches_centred_scores():
    """Hinton et al. 2015, equation 4: (ŷ − z) / C for scores of mean 0, thanks to the factor T²."""
    logits, teacher = torch.tensor([[0.2, -0.1, -0.1]], requires_grad=True), torch.tensor([[0.3, 0.0, -0.3]])
    soft_labels(TASK, 1e3).loss(logits, teacher).backward()
    assert torch.allclose(logits.grad, (logits.detach() - teacher) / 3, atol=2e-4)


def test_rows_get_the_scores_of_a_teacher():
    encoded = TASK.encode([{"text": "good"}, {"text": "bad film"}], models.tiny_tokenizer(), labelled=False)
    labelled = with_scores(encoded, np.array([[1.0, 2, 3], [4, 5, 6]]))
    assert [row["label"] for row in labelled] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert "label" not in encoded[0]
    with pytest.raises(DeltatuneError, match="scores of 1 rows for 2"):
        with_scores(encoded, np.zeros((1, 3)))
    with pytest.raises(DeltatuneError, match="not finite"):
        with_scores(encoded, np.full((2, 3), np.nan))


def test_soft_labels_are_for_classes():
    with pytest.raises(DeltatuneError, match="scores of classes"):
        SoftLabels()
    with pytest.raises(DeltatuneError, match="temperature"):
        soft_labels(TASK, 0.0)
    assert isinstance(with_scores(Encoded([]), np.zeros((0, 3))), Encoded)
