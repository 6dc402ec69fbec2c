"""OpenAI's client, of `deltatune serve`."""

NAME = "openai client"
PACKAGES = ("openai",)
REASON = "it only asks"
NOT_APPLICABLE = {"attach": REASON, "train": REASON, "save": REASON, "reload": REASON}
SHOWN_BY = {
    "serve": (
        "tests/serving/server/test_openai_completions.py::test_greedy_answers_equal_those_offline",
        "tests/serving/server/test_openai_chat.py::test_a_conversation_in_the_models_template",
    )
}
