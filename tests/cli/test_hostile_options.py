"""Options that are repeated, absurd or hostile: one plain error each."""

import pytest

from deltatune.cli.options.shared_options import read_fields
from deltatune.core.errors import DeltatuneError
from support.command_line import ran, reviews, write_csv


def test_a_field_that_is_set_twice_is_named() -> None:
    with pytest.raises(DeltatuneError, match=r"--set beams is given twice \(2 and 4\); give it once"):
        read_fields(["beams=2", "top_p=0.9", "beams=4"])


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 6000, "[" * 5000, "-" * 5000 + "1", "{[]: 1}", "\0"])
def test_a_value_that_is_no_literal_is_text(value: str) -> None:
    assert read_fields([f"beams={value}"]) == {"beams": value}


@pytest.mark.parametrize(
    ("command", "where"),
    [("compare", "comparison.plans.make_plan"), ("continual", "comparison.continual.continual_plan")],
)
def test_the_optimizer_reaches_the_settings(command, where, tmp_path, monkeypatch):
    def make_plan(data, *, settings, **more):
        raise DeltatuneError(f"asked for {settings.optimizer}")

    monkeypatch.setattr(f"deltatune.{where}.make_plan", make_plan)
    data = write_csv(tmp_path / "a.csv", reviews(60))
    sources = ["--data", data] if command == "compare" else ["--data", f"a={data}", "--data", f"b={data}"]
    assert "asked for paged-adamw-8bit" in ran(command, *sources, "--optimizer", "paged-adamw-8bit").err
    assert "--optimizer" in ran(command, *sources, "--optimizer", "adam").err
