"""Costs of a chain of thought and of demonstrations: the prompt against the question alone."""

import pytest

from deltatune.comparison.costs.inference_costs import costs_of
from deltatune.prompting.chain_of_thought import ChainOfThought
from deltatune.prompting.in_context.in_context_learning import ICL
from deltatune.prompting.prompt_method import PromptRows
from deltatune.tasks.generation import Generate
from deltatune.training import Settings
from deltatune.training.open_session import open_host
from deltatune.training.session import Session
from support import models
from support.language_models import generation_tokenizer

ROWS = [{"question": f"{n} and {n}?", "answer": f"so {2 * n}.\n#### {2 * n}"} for n in range(4)]


@pytest.mark.parametrize("method", [ChainOfThought(shots=1, new_tokens=5, answer_tokens=5), ICL(shots=1)])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_prompt_makes_a_question_longer(kind, method, tmp_path):
    models.tiny(kind, "lm").save_pretrained(tmp_path)
    generation_tokenizer().save_pretrained(tmp_path)
    host, tokenizer = open_host(str(tmp_path), "text")
    session = Session(
        str(tmp_path),
        host,
        tokenizer,
        Generate(text=("question",), label="answer", max_length=100),
        precision="float32",
    )
    own = method.fit(session, PromptRows(ROWS), Settings()).session
    test, plain = own.encode(ROWS), session.encode(ROWS)
    costs = costs_of(own, test, plain)
    longer = len(test.facts[0]["prompt"]) - len(plain.facts[0]["prompt"])
    assert costs.tokens == pytest.approx(longer, abs=2)
    assert costs.extra_flops > 0
    assert (costs.latency_ratio_merged, costs.writing_ratio) == (None, None)
