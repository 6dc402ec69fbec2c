"""sentence-transformers around a hosted encoder."""

import pytest

import deltatune
from support import models
from support.neighbours import TEXTS, randomize_, works

NAME = "sentence-transformers"
PACKAGES = ("sentence_transformers", "datasets")
SHOWN_BY = {
    "train": "tests/store/test_save_calls.py::test_the_trainer_of_sentence_transformers",
    "save": "tests/store/test_save_calls.py::test_sentence_transformers_save",
}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def open_(tmp_path):
    from sentence_transformers import SentenceTransformer

    models.tiny("bert").save_pretrained(tmp_path / "bert")
    models.tiny_tokenizer().save_pretrained(tmp_path / "bert")
    return lambda name="bert": SentenceTransformer(str(tmp_path / name), device="cpu")


def adapted(sentences, method="LoRA(r=2)"):
    host = deltatune.Host(sentences[0].auto_model)
    host.attach("mine", deltatune.parse(method))
    randomize_(host)
    return host


@works("host = deltatune.Host(sentences[0].auto_model)", but=("the SentenceTransformer itself", "take its part"))
def test_attach(open_, refusal):
    sentences = open_()
    with refusal():
        deltatune.Host(sentences)
    plain = sentences.encode(TEXTS[:2])
    host = deltatune.Host(sentences[0].auto_model)
    host.attach("mine", deltatune.LoRA(r=2))
    randomize_(host)
    assert abs(sentences.encode(TEXTS[:2]) - plain).max() > 1e-3


@works(
    "deltatune.Host(again[0].auto_model).load(folder)",
    but=("what PEFT cannot hold, by its own loader,", "Unrecognized model in"),
)
def test_reload(open_, refusal, tmp_path):
    sentences = open_()
    adapted(sentences, "Bottleneck(size=4)")
    folder = str(tmp_path / "out")
    sentences.save(folder)
    again = open_()
    deltatune.Host(again[0].auto_model).load(folder)
    assert (again.encode(TEXTS[:2]) == sentences.encode(TEXTS[:2])).all()
    with refusal():
        open_("out")


@works()
def test_serve(open_):
    sentences = open_()
    host = adapted(sentences)
    wanted = sentences.encode(TEXTS[:4])
    assert abs(sentences.encode(TEXTS[:4], batch_size=1) - wanted).max() < 1e-5
    with host.disabled():
        assert (sentences.encode(TEXTS[:4]) == open_().encode(TEXTS[:4])).all()
