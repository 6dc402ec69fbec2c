"""Strict JSON: each thing that Python's reader and writer let through is an error that names it."""

import math

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.strict_json import MAX_DEPTH, dumps, finite_or_null, loads


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"r": 8,\n "b": {"r": 1, "r": 4}}', r"a\.json: the key 'r' is repeated \(line 2, column 16\)"),
        ('{"a\\u0062": 1, "ab": 2}', "the key 'ab' is repeated"),
        ('["NaN", NaN]', r"NaN is not JSON; numbers are finite \(line 1, column 9\)"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1,\n 1e400]", r"the number '1e400' is beyond the range of float64 \(line 2, column 2\)"),
        ("9" * 5000, "has 5,000 characters"),
        ("0." + "3" * 5000, "has 5,002 characters"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than 100 deep"),
        ('{"a":' * 150 + "1" + "}" * 150, "nested more than 100 deep"),
        ('{"label": ["\\ud800"]}', r"'\\ud800' of label\[0\] has half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 0xff at position 7\)"),
        ("{'a': 1}", r"as JSON: expecting property name.* \(line 1, column 2\)"),
        ("", "expecting value"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_json_does_not_allow_is_one_plain_error(text: str | bytes, message: str) -> None:
    with pytest.raises(DeltatuneError, match=message):
        loads(text, "a.json")


def test_everything_that_json_allows_is_read() -> None:
    text = (
        '{"a": [1, -2.5e3, true, null, "\\ud83d\\ude00", "NaN"], "b": {"a": {}}, "c": 123456789012345678901234567890}'
    )
    expected = {"a": [1, -2500.0, True, None, "😀", "NaN"], "b": {"a": {}}, "c": 123456789012345678901234567890}
    assert loads(text, "a.json") == expected
    assert loads(text.encode(), "a.json") == expected
    assert loads("[" * MAX_DEPTH + "]" * MAX_DEPTH, "a.json")


def test_a_number_that_is_not_finite_is_refused_with_its_path_or_written_as_null() -> None:
    value = {"scores": [{"loss": math.inf}, {"loss": 1.0}], "rate": math.nan}
    with pytest.raises(DeltatuneError, match=r"write metrics.json: scores\[0\].loss is inf, rate is nan"):
        dumps(value, "metrics.json")
    assert dumps(value, nonfinite="null") == '{"scores": [{"loss": null}, {"loss": 1.0}], "rate": null}'
    assert finite_or_null((1.0, -math.inf)) == [1.0, None]


def test_text_that_utf8_cannot_hold_is_not_written() -> None:
    with pytest.raises(DeltatuneError, match=r"the text 'a\\ud800' of rows\[0\] has half of a surrogate pair"):
        dumps({"rows": ["a\ud800"]}, "answers.json")


def test_a_value_without_end_is_not_written() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(DeltatuneError, match="cannot write the plan"):
        dumps(value, "the plan")
