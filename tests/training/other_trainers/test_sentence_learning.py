"""The trainer of sentence-transformers learns with every kind of method but soft prompts on a hosted encoder."""

import pytest
from transformers import PrinterCallback

import deltatune
from deltatune import IA3, BitFit, Bottleneck, LoRA, LoReFT, Prefix, Prompt, PTuning
from deltatune.core.errors import DeltatuneError
from support import models

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

METHODS = [
    LoRA(r=4),
    Bottleneck(size=8),
    Prefix(length=4),
    IA3(),
    BitFit(),
    LoReFT(r=4),
    Prefix(length=2) + Bottleneck(size=4),
]
GOOD, BAD = ("good", "great", "not bad"), ("bad", "awful", "not good")


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_similar_texts_come_closer(method, tmp_path):
    library, datasets = pytest.importorskip("sentence_transformers"), pytest.importorskip("datasets")
    from sentence_transformers.sentence_transformer import losses

    models.tiny("bert", initializer_range=0.3).save_pretrained(tmp_path / "bert")
    models.tiny_tokenizer().save_pretrained(tmp_path / "bert")
    sentences = library.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    host = deltatune.Host(sentences[0].auto_model)
    host.attach("a", method)
    pairs = [(f"the film is {a}", f"the film was {b}", a, b) for a in GOOD + BAD for b in GOOD + BAD]
    data = datasets.Dataset.from_dict({
        "sentence1": [pair[0] for pair in pairs],
        "sentence2": [pair[1] for pair in pairs],
        "score": [float((pair[2] in GOOD) == (pair[3] in GOOD)) for pair in pairs],
    })  # fmt: skip
    options = library.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=40, per_device_train_batch_size=36, learning_rate=2e-2,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    loss = losses.CosineSimilarityLoss(sentences)
    trainer = library.SentenceTransformerTrainer(sentences, options, train_dataset=data, loss=loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(log[-5:]) / 5 < log[0] - 0.02  # without an adapter it stays where it is, about 0.44
    wanted = sentences.encode([pair[0] for pair in pairs])
    sentences.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    deltatune.Host(again[0].auto_model).load(tmp_path / "saved")
    assert (again.encode([pair[0] for pair in pairs]) == wanted).all()


@pytest.mark.parametrize("method", [Prompt(length=4), PTuning(length=4), LoRA(r=2) + Prompt(length=2)], ids=repr)
def test_soft_prompts_are_refused_because_their_tokens_would_be_missing(method, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    models.tiny("bert").save_pretrained(tmp_path / "bert")
    models.tiny_tokenizer().save_pretrained(tmp_path / "bert")
    sentences = library.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    host = deltatune.Host(sentences[0].auto_model)
    plain = sentences.encode(["the film"])
    host.attach("a", method)
    with pytest.raises(DeltatuneError, match="sentence-transformers calls it so"):
        sentences.encode(["the film"])
    with host.disabled():
        assert (sentences.encode(["the film"]) == plain).all()
