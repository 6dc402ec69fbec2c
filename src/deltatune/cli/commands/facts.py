"""`deltatune facts`: which facts a language model knows, by wordings with a blank, and prompts trained to ask them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.quantize_options import AdapterQuantize
from deltatune.cli.options.shared_options import ADAPTER, DATA, OUTPUT, SETTINGS, TRAINING, Json, OtherBase, option
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import fields_of
from deltatune.cli.ui.live import Bar
from deltatune.cli.ui.output_file import checked_output, draft_of
from deltatune.cli.ui.screen import facts as fact_lines
from deltatune.cli.ui.screen import plural, print_json, say, show, table
from deltatune.comparison.report.number_format import clip, count, score, seconds

if TYPE_CHECKING:
    from rich.table import Table

WORDINGS = "Wordings"
STUDY = fields_of("prompting/facts/fact_questions.py", "FactStudy")
LONGEST_WORDING = 58
"""Characters of a wording that are printed; --json and --out have it whole."""


MEANS = {"first": "first wordings", "best": "best wordings", "most_frequent": "same answer", "adapter": "adapter"}
"""Means in a report, and what they are called."""
BEHIND = {
    "best wordings": ", chosen on these rows: too good for others",
    "same answer": ", the relation's most frequent object for every row",
}
"""What is said of them."""


def _study(name: str, field: str, panel: str, metavar: str | None = None, *short: str, **more: Any) -> Any:
    """The option of a field of FactStudy."""
    return option(name, *short, panel=panel, metavar=metavar, help=f"{STUDY[field].help}.", **more)


def facts(
    model: Annotated[str | None, _study("--model", "model", DATA, "MODEL", "-m")] = None,
    data: Annotated[str, _study("--data", "data", DATA, "DATA", "-d")] = "",
    relation: Annotated[list[str] | None, _study("--relation", "relations", DATA, "NAME")] = None,
    subject: Annotated[str | None, _study("--subject", "subject", DATA, "COLUMN")] = None,
    object: Annotated[str | None, _study("--object", "object", DATA, "COLUMN")] = None,
    limit: Annotated[int | None, _study("--limit", "limit", DATA, "ROWS", min=1)] = None,
    adapter: Annotated[str | None, ADAPTER] = None,
    other_base: OtherBase = False,
    quantize: AdapterQuantize = None,
    template: Annotated[
        list[str] | None,
        option(
            "--template",
            "-t",
            panel=WORDINGS,
            metavar="TEXT",
            help='A wording such as "[X] is located in [Y].": [X] or {subject} is the subject, [Y] or {mask} the '
            "object. Give it again for another wording of the same relation.",
        ),
    ] = None,
    templates: Annotated[str | None, _study("--templates", "templates", WORDINGS, "FILE")] = None,
    candidates: Annotated[str | None, _study("--candidates", "candidates", WORDINGS, "FILE")] = None,
    top: Annotated[
        list[int] | None,
        option(
            "--top", panel=WORDINGS, metavar="NUMBER", help="Print P@K beside P@1; give it again. Default: 10.", min=1
        ),
    ] = None,
    optimise: Annotated[
        list[str] | None,
        option(
            "--optimise",
            panel=TRAINING,
            metavar="METHOD",
            help="Train this for each relation, and score it beside the wordings: "
            "\"PTuning(template='{subject} {5} {mask}.')\", Prompt() with --from-wording, or a method without a "
            "template, in the relation's first wording. Give it again for another method.",
        ),
    ] = None,
    from_wording: Annotated[bool, _study("--from-wording", "from_wording", TRAINING)] = False,
    train: Annotated[str | None, _study("--train", "train", TRAINING, "DATA")] = None,
    over: Annotated[str, _study("--over", "over", TRAINING, "KIND")] = "vocabulary",
    epochs: Annotated[
        float, option("--epochs", panel=TRAINING, metavar="NUMBER", help=f"{SETTINGS['epochs'].help}.")
    ] = 10.0,
    lr: Annotated[float, option("--lr", panel=TRAINING, metavar="RATE", help="Peak learning rate.")] = 3e-3,
    batch_size: Annotated[
        int, option("--batch-size", panel=TRAINING, metavar="ROWS", help=f"{SETTINGS['batch_size'].help}.")
    ] = 16,
    seed: Annotated[
        int, option("--seed", panel=TRAINING, metavar="NUMBER", help="Random seed for initialisation and shuffling.")
    ] = 0,
    prompts: Annotated[str | None, _study("--prompts", "prompts", OUTPUT, "FOLDER")] = None,
    force: Annotated[bool, _study("--force", "force", OUTPUT)] = False,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FILE", help="Write the scores of every wording to a CSV file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the facts that a language model knows: P@k of objects at the blank of wordings (LAMA, Petroni et al. 2019).

    The object is one token; other rows are left out and counted. One relation has a line for each wording, several
    have one for each relation, and their micro and macro means. Trained prompts are adapters, for --adapter.

      deltatune facts --model bert-base-cased --data lama_trex/test.jsonl --relation P17 \\
        --template "[X] is located in [Y]." --template "[X] is located in which country? In [Y]."
      deltatune facts --model bert-base-cased --data lama_trex --optimise "Prompt(template='{subject} {5} {mask}.')"
    """
    target = None if out is None else checked_output(out, [path for path in (data, templates, candidates) if path])
    from dataclasses import replace

    from deltatune.prompting.facts.fact_questions import FactStudy
    from deltatune.prompting.facts.fact_study import run_study
    from deltatune.prompting.facts.fact_training import SETTINGS as PUBLISHED

    settings = replace(PUBLISHED, epochs=epochs, learning_rate=lr, batch_size=batch_size, seed=seed)
    study = FactStudy(
        model, data, tuple(relation or ()), subject, object, limit, adapter, other_base, quantize,
        tuple(template or ()), templates, candidates, tuple(dict.fromkeys((1, *(top or (10,))))),
        tuple(optimise or ()), from_wording, train,
        settings, over, prompts, force,  # type: ignore[arg-type]  # it checks
    )  # fmt: skip
    try:
        with FactProgress() as progress:
            report = run_study(study, progress)
    except KeyboardInterrupt:
        kept = "trained prompts are kept, the same command goes on" if study.methods else "nothing was written"
        raise Interrupted(kept) from None
    if target is not None:
        with draft_of(target) as draft:
            write_csv(draft, report)
    if as_json:
        print_json(report)
        return
    show(scores_of_facts(report), "")
    show(fact_lines([(name, text) for name, text in summary(report)]))
    if target is not None:
        say(f"Scores: {target}")


class FactProgress(Bar):
    """Shows the wording that is asked: a bar in a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        super().__init__("asking")
        self.printed = -1

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show what comes next."""
        if self.update(done, total, clip(text, LONGEST_WORDING)):
            return
        tenth = 10 * done // max(1, total)
        if total > 1 and tenth > self.printed:
            self.printed = tenth
            self.console.print(f"{done}/{total}  {text}")


# ---- tables


def scores_of_facts(report: Mapping[str, Any]) -> Table:
    """A line for each wording of one relation, or for each of several relations."""
    relations = report["relations"]
    return _by_wording(relations[0], report["top"]) if len(relations) == 1 else _by_relation(report)


def _by_wording(relation: Mapping[str, Any], tops: Sequence[int]) -> Table:
    names = [f"P@{k}" for k in tops]
    right = [*names, "95 % of P@1", "p", "rows", "left out"]
    rows = []
    for each in relation["wordings"]:
        test = each.get("against_first")
        rows.append([
            clip(_shown(each), LONGEST_WORDING),
            *(score(each[f"p@{k}"]) for k in tops),
            _interval(each["interval"]),
            "" if test is None else _p(test["p"]),
            count(each["rows"]),
            count(sum(each["left_out"].values())),
        ])  # fmt: skip
    frequent = relation["most_frequent"]
    if frequent["p@1"] is not None:
        always = [score(frequent["p@1"]) if k == 1 else "" for k in tops]
        rows.append([f"(always {frequent['object']})", *always, "", "", "", ""])
    return table([_title(relation), *right], rows, right=right)


def _by_relation(report: Mapping[str, Any]) -> Table:
    names = [f"P@{k}" for k in report["top"]]
    methods = report["methods"]
    others = ["adapter"] if "adapter" in report["means"] else []
    others += ["trained"] if len(methods) == 1 else [f"trained {n}" for n, _ in enumerate(methods, 1)]
    right = ["rows", "left out", *names, "95 % of P@1", "wordings", "P@1 of them", *others]
    rows = []
    for relation in report["relations"]:
        plain = [each for each in relation["wordings"] if each["source"] == "wording"]
        first = (plain or relation["wordings"])[0]
        of_all = [each["p@1"] for each in plain if each.get("p@1") is not None]
        by_name = {each["wording"]: each for each in relation["wordings"] if each["source"] == "trained"}
        by_adapter = [each for each in relation["wordings"] if each["source"] == "adapter"]
        asked = [*by_adapter[:1], *(by_name.get(method, {}) for method in methods)]
        rows.append([
            f"{relation['relation']} {clip(first['wording'], 34)}",
            count(first["rows"]),
            count(sum(first["left_out"].values())),
            *(score(first[f"p@{k}"]) for k in report["top"]),
            _interval(first["interval"]),
            count(len(plain)),
            f"{min(of_all):.3f} to {max(of_all):.3f}" if len(of_all) > 1 else "",
            *(score(each.get("p@1")) for each in asked),
        ])  # fmt: skip
    return table(["relation, first wording", *right], rows, right=right)


def _title(relation: Mapping[str, Any]) -> str:
    return f"wording of {relation['relation']}" if relation["relation"] else "wording"


def _shown(wording: Mapping[str, Any]) -> str:
    return wording["wording"] if wording["source"] == "wording" else f"{wording['source']}: {wording['wording']}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def summary(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines under the table: means over relations, what was left out, what the figures say."""
    from deltatune.prompting.facts.fact_report import remarks

    lines: list[tuple[str, str]] = []
    if len(report["relations"]) > 1:
        means = report["means"]
        trained = means.get("trained", {})
        named = {name: means[kind] for kind, name in MEANS.items() if kind in means}
        named |= {f"trained {n}" if len(trained) > 1 else "trained": each for n, each in enumerate(trained.values(), 1)}
        for name, each in named.items():
            parts = [
                f"{how} " + ", ".join(f"{k.upper()} {score(each[how][k])}" for k in each[how])
                for how in ("micro", "macro")
            ]
            of = f"{'; '.join(parts)} ({plural(each['relations'], 'relation')}, {count(each['rows'])} rows)"
            lines.append((name, of + BEHIND.get(name, "")))
        spread = report["means"].get("all")
        if spread and spread["wordings"] > len(report["relations"]):
            lines.append((
                "spread",
                f"P@1 of the {count(spread['wordings'])} wordings: mean {score(spread['macro_mean'])}, from "
                f"{score(spread['macro_low'])} to {score(spread['macro_high'])}, standard deviation "
                f"{score(spread['macro_deviation'])}, each averaged over relations",
            ))  # fmt: skip
    lines += [("note", note) for note in [*left_out_notes(report), *report["notes"]]]
    candidates = report["candidates"]
    if candidates:
        lines.append(("candidates", _candidates(candidates)))
    asked = [each for relation in report["relations"] for each in relation["wordings"]]
    lines.append(("cost", _cost([each["cost"] for each in asked])))
    trained = [each["training"] for each in asked if "training" in each]
    if trained:
        sizes = sorted({each["parameters"] for each in trained})
        of = count(sizes[0]) if len(sizes) == 1 else f"{count(sizes[0])} to {count(sizes[-1])}"
        lines.append(("training", f"{of} parameters a relation; {_cost([each['cost'] for each in trained])}"))
    if report.get("prompts"):
        lines.append(("prompts", f"{report['prompts']}/RELATION: deltatune facts --adapter opens one"))
    return [*lines, *(("", line) for line in remarks(report))]


def _cost(costs: Sequence[Mapping[str, Any]]) -> str:
    passes, tokens, spent = (sum(each[name] for each in costs) for name in ("passes", "tokens", "seconds"))
    return f"{count(passes)} rows read, {count(tokens)} tokens, {seconds(spent)}"


def left_out_notes(report: Mapping[str, Any]) -> list[str]:
    """Rows that were left out of the first wordings by reason, and repeated rows."""
    reasons: dict[str, int] = {}
    for relation in report["relations"]:
        for reason, number in relation["wordings"][0]["left_out"].items():
            reasons[reason] = reasons.get(reason, 0) + number
    repeats = sum(relation["repeats"] for relation in report["relations"])
    notes = [
        f"{count(number)} {'row' if number == 1 else 'rows'} left out: "
        + ("longer than the model's input" if reason == "too long" else f"the object is {reason}")
        for reason, number in reasons.items()
    ]
    return notes + (
        [f"{plural(repeats, 'row')} with a subject and object seen before: counted once"] if repeats else []
    )


def _candidates(candidates: Mapping[str, Any]) -> str:
    one = candidates["one_token"]
    if isinstance(one, Mapping):
        sizes = sorted(one.values())
        span = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
        return f"the objects of the relation in these data, {span} of one token"
    return f"{one:,} of the {candidates['words']:,} words of {candidates['source']} are one token"


def write_csv(path: Path, report: Mapping[str, Any]) -> None:
    """A row for each wording."""
    names = [f"p@{k}" for k in report["top"]]
    header = ["relation", "wording", "source", "rows", "left_out", *names, "mrr", "low", "high", "p_against_first"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for relation in report["relations"]:
            for each in relation["wordings"]:
                low, high = each["interval"] or ("", "")
                test = each.get("against_first", {}).get("p", "")
                scores = ["" if each[name] is None else each[name] for name in (*names, "mrr")]
                writer.writerow([
                    relation["relation"], each["wording"], each["source"], each["rows"],
                    sum(each["left_out"].values()), *scores, low, high, test,
                ])  # fmt: skip
