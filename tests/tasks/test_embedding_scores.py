"""BERTScore equals the package's; the mover's distance is the smallest; metrics of an encoder say what they need."""

import itertools
import json

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate, task_from_json
from deltatune.tasks.metrics.generation import embedding_scores, text_scores
from support import models
from support.language_models import generation_tokenizer

TEXTS = ["the film is good", "the plot was awful and very bad", "great", "it is this", "  the   film "]
REFERENCES = [
    ["this film is great", "a good film"],
    ["the plot was bad"],
    ["good", "great"],
    ["an actor"],
    ["the film"],
]
PACKAGE = {
    2: [0.95031, 0.806001, 1.0, 0.553316, 1.0],
    1: [0.942577, 0.766265, 1.0, 0.460826, 1.0],
}
"""F1 by layer of bert-score 0.3.13 with transformers 5.23 on this encoder: BERTScorer(model_type=folder,
num_layers=layer).score(TEXTS, REFERENCES)[2]."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder of a tiny BERT whose weights are written down by a formula."""
    folder, model = tmp_path_factory.mktemp("encoder"), models.tiny("bert")
    with torch.no_grad():
        for i, (name, weight) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * (1.7 + 0.31 * i)).float()
            norm = "LayerNorm" in name and name.endswith("weight")
            weight.copy_(1 + 0.1 * wave.view_as(weight) if norm else 0.5 * wave.view_as(weight))
    model.save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    embedding_scores.text_encoder.cache_clear()
    return str(folder)


@pytest.mark.parametrize("layer", PACKAGE)
def test_bertscore_is_the_packages(encoder, layer):
    metric = embedding_scores.bertscore(TEXTS, REFERENCES, encoder, layer)
    assert metric.sums[:, 0] == pytest.approx(PACKAGE[layer], abs=2e-6)
    assert metric.score() == pytest.approx(np.mean(PACKAGE[layer]), abs=2e-6)


def test_the_usual_layer_is_the_last(encoder):
    usual, last = (embedding_scores.bertscore(TEXTS, REFERENCES, encoder, layer) for layer in (0, 2))
    assert usual.sums == pytest.approx(last.sums)


def test_the_same_text_has_the_largest_score_and_an_empty_one_none(encoder):
    for name in ("bertscore", "mover"):
        score = text_scores(["the film", "", "good"], [["the film"], ["good"], [""]], [name], encoder=encoder)[name]
        assert score.sums[:, 0] == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)


def test_batches_change_nothing(encoder, monkeypatch):
    texts = [" ".join(words) for words in itertools.product(["the", "a good"], ["film", "plot was"], ["bad", ""])]
    whole = embedding_scores.bertscore(texts, [["the film"]] * len(texts), encoder).sums
    embedding_scores.text_encoder(encoder, 0).known.clear()
    monkeypatch.setattr(embedding_scores, "BATCH", 1)
    assert embedding_scores.bertscore(texts, [["the film"]] * len(texts), encoder).sums == pytest.approx(
        whole, abs=1e-5
    )


def test_earth_movers_distance_is_the_best_assignment():
    costs = np.random.default_rng(0).random((4, 4))
    best = min(np.mean([costs[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(4)))
    assert embedding_scores.earth_movers_distance(np.full(4, 0.25), np.full(4, 0.25), costs) == pytest.approx(best)
    moved = embedding_scores.earth_movers_distance(np.array([1.0]), np.array([0.25, 0.75]), np.array([[2.0, 4.0]]))
    assert moved == pytest.approx(3.5)


def test_a_task_that_is_scored_by_an_encoder(encoder):
    task = Generate(metric="bertscore", metric_model=encoder, metric_layer=1)
    scores = task.score([{"text": text} for text in TEXTS], REFERENCES)
    assert scores["bertscore"] == pytest.approx(np.mean(PACKAGE[1]), abs=2e-6)
    assert "rougeL" in scores
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task
    older = Generate().to_json()
    del older["metric_model"], older["metric_layer"]
    assert task_from_json(older) == Generate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "bertscore compares embeddings of an encoder: name it with metric_model"),
        ({"metric_model": "no/such-encoder-anywhere"}, "no folder here is called"),
        ({"metric_model": "ENCODER", "metric_layer": 3}, "metric_layer=3: .* has layers 1 to 2"),
    ],
)
def test_what_is_missing_is_told_before_training(fields, message, encoder):
    if fields.get("metric_model") == "ENCODER":
        fields = {**fields, "metric_model": encoder}
    with pytest.raises(DeltatuneError, match=message):
        Generate(metric="bertscore", **fields).encode([{"input": "a", "output": "b"}], generation_tokenizer())


# --- BLEURT ---


def test_bleurt_is_the_models_output_for_the_pair(tmp_path):
    config = models.tiny("bert").config
    config.num_labels = 1
    model, tokenizer = BertForSequenceClassification(config).eval(), generation_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    score = text_scores(TEXTS, REFERENCES, ["bleurt"], encoder=str(tmp_path))["bleurt"]
    with torch.no_grad():
        for text, row, value in zip(TEXTS, REFERENCES, score.sums[:, 0], strict=True):
            outputs = [float(model(**tokenizer(one, text, return_tensors="pt")).logits) for one in row]
            assert value == pytest.approx(max(outputs), abs=1e-5)


def test_bleurt_needs_a_checkpoint_with_one_output(encoder, tmp_path):
    models.tiny("bert", "classify").save_pretrained(tmp_path)
    for model, message in [
        ("", "bleurt needs a BLEURT checkpoint"),
        (encoder, "BertModel with"),
        (str(tmp_path), "3 labels"),
    ]:
        with pytest.raises(DeltatuneError, match=message):
            Generate(metric="bleurt", metric_model=model).encode(
                [{"input": "a", "output": "b"}], generation_tokenizer()
            )
