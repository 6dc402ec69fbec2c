"""Templates made by rules: a small grammar of phrases, their order, and the punctuation between and behind them.

One text, where P is one of PHRASES and E one of ENDS:

    TEMPLATE -> text P blank E | P blank E text | text FRAME blank
    FRAME    -> line break, "Question: ...? Answer:" | line break, "Category:"

Two texts a and b, where C is one of CONNECTIONS, with the blank in it:

    TEMPLATE -> a C b | b C a | "a" C "b" | a b FRAME blank

For left-to-right models nothing comes behind the blank. More texts stand side by side as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PHRASES = (
    "It was",
    "This is",
    "It is about",
    "All in all, it was",
    "In summary, it is",
    "The answer is",
    "Category:",
    "Topic:",
    "I think it is",
    "",
)
"""What stands before the blank."""
ENDS = (".", "!", "")
"""What stands behind it."""
QUESTIONS = ("What is it?", "What is this about?", "Which category does it belong to?", "What kind of text is it?")
"""Question words before an answer."""
CONNECTIONS = (
    "{a:stem}? {mask}, {b:lower}",
    "{a:stem}? {mask}. {b}",
    "{a} {mask}, {b:lower}",
    "{a} {mask}. {b}",
    "{a} ... {mask} ... {b}",
    "{a:stem}, {mask}, {b:lower}",
    "{a} This means: {mask}. {b}",
    "{a:stem}, right? {mask}, {b:lower}",
)
"""Two texts with the blank between."""
PAIR_QUESTIONS = ("Does the first follow from the second?", "Do they mean the same?", "Is it true?")


def rule_templates(columns: Sequence[str], left_to_right: bool = False) -> list[str]:
    """All templates of the grammar for these text columns, each once, in its order."""
    fields = [f"{{{name}}}" for name in columns]
    if len(columns) == 2:
        made = _of_pairs(columns[0], columns[1], left_to_right)
    else:
        made = _of_one(" ".join(fields), left_to_right)
    return list(dict.fromkeys(made))


def _of_one(text: str, left_to_right: bool) -> Iterator[str]:
    for phrase in filter(None, PHRASES):
        for end in ("",) if left_to_right else ENDS:
            yield f"{text} {phrase} {{mask}}{end}"
    if not left_to_right:
        for phrase in PHRASES:
            end = "" if phrase.endswith(":") else "."
            yield f"{phrase} {{mask}}{end} {text}".strip()
        yield f"{{mask}}: {text}"
        yield f"{text} ({{mask}})"
    for question in QUESTIONS:
        yield f"{text}\nQuestion: {question} Answer: {{mask}}"
    yield f"{text}\nCategory: {{mask}}"


def _of_pairs(a: str, b: str, left_to_right: bool) -> Iterator[str]:
    for first, second in ((a, b), (b, a)):
        for connection in () if left_to_right else CONNECTIONS:
            template = connection.replace("{a", "{" + first).replace("{b", "{" + second)
            yield template
            quoted = template.replace(f"{{{first}:stem}}", f'"{{{first}}}"').replace(f"{{{first}}} ", f'"{{{first}}}" ')
            yield quoted.replace(f"{{{second}:lower}}", f'"{{{second}}}"')
        for question in PAIR_QUESTIONS:
            yield f"{{{first}}} {{{second}}}\nQuestion: {question} Answer: {{mask}}"
        yield f"{{{first}}}\n{{{second}}}\nAnswer: {{mask}}"
