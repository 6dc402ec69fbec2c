"""What the rows of the table of neighbours share. A row whose neighbour is not installed is skipped."""

import pytest
from transformers import PreTrainedTokenizerFast

from support import models
from support.neighbours import refusal_of


@pytest.fixture(autouse=True)
def installed(request):
    for name in getattr(request.module, "PACKAGES", ()):
        pytest.importorskip(name)


@pytest.fixture
def refusal(request):
    """`with refusal(): ...`: what runs in it is refused in the words of the test's cell."""
    entered = []

    def block():
        entered.append(True)
        return refusal_of(request.function.cell)

    yield block
    several = hasattr(request.node, "callspec")  # one of them may refuse
    assert entered or several, "the test refuses nothing"


@pytest.fixture
def base(tmp_path):
    """A folder with a tiny Llama and its tokenizer, as a user has it."""
    models.tiny("llama", "lm", dropout=False).save_pretrained(tmp_path / "base")
    models.tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # decoders have no token types
    return tokenizer
