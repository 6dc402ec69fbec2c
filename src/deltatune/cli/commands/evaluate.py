"""`deltatune evaluate`: score a trained adapter, or a prompt, on labelled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.data_options import Part, one_source, sources_of_parts
from deltatune.cli.options.prompt_options import (
    SERVER_FIELDS,
    Cache,
    Concurrency,
    Describe,
    Key,
    Name,
    Omit,
    PromptMethodText,
    PromptSeed,
    Retries,
    SavePrompt,
    ServerForm,
    Template,
    Timeout,
    Url,
    Words,
)
from deltatune.cli.options.quantize_options import AdapterPrecision, AdapterQuantize
from deltatune.cli.options.shared_options import (
    DATA,
    SOURCE,
    AdapterIfAny,
    InferenceFields,
    Json,
    Kind,
    Label,
    MaxLength,
    OtherBase,
    OtherModel,
    Text,
    Weight,
    option,
    read_fields,
    set_values,
)
from deltatune.cli.options.task_options import MetricModel, Positive
from deltatune.cli.prompt_session import OpenedPrompt, PromptChoice, opened_prompt, server_options
from deltatune.cli.scored_rows import GROUPS_SHOWN, groups_table, overlap_notes, rows_of, scored
from deltatune.cli.ui.screen import (
    facts,
    long_texts,
    print_json,
    scores_table,
    show,
)
from deltatune.comparison.report.number_format import count, score
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.prompting.server_session import ServerSession
    from deltatune.training.session import Session


def evaluate(
    *,
    adapter: AdapterIfAny = None,
    data: Annotated[
        list[str],
        option(
            "--data",
            "-d",
            panel=DATA,
            metavar="DATA",
            help=f"{SOURCE} For a mixture NAME=DATA for each part, or one with --part.",
        ),
    ],
    part: Part = None,
    split: Annotated[
        str | None,
        option(
            "--split",
            panel=DATA,
            metavar="SPLIT",
            help="train, validation, test, all, or another split of the data such as test_mismatched. Default: every "
            "test split; all for a single file that was not used for training.",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        option(
            "--by",
            panel=DATA,
            metavar="COLUMN",
            help="Score the rows of each value of this column on their own, too; give it again for another column.",
        ),
    ] = None,
    metric: Annotated[
        str | None, option("--metric", panel=DATA, metavar="NAME", help="Another primary metric than at training.")
    ] = None,
    positive: Positive = None,
    metric_model: MetricModel = None,
    model: OtherModel = None,
    other_base: OtherBase = False,
    quantize: AdapterQuantize = None,
    fields: InferenceFields = None,
    weight: Weight = 1.0,
    batch_size: Annotated[int, option("--batch-size", panel=DATA, metavar="ROWS", help="Rows of a batch.", min=1)] = 64,
    method: PromptMethodText = None,
    template: Template = None,
    words: Words = None,
    describe: Describe = None,
    seed: PromptSeed = 0,
    save: SavePrompt = None,
    text: Text = None,
    label: Label = None,
    task: Kind = None,
    max_length: MaxLength = None,
    url: Url = None,
    name: Name = None,
    key: Key = None,
    form: ServerForm = SERVER_FIELDS["form"].default,
    timeout: Timeout = SERVER_FIELDS["timeout"].default,
    retries: Retries = SERVER_FIELDS["retries"].default,
    concurrency: Concurrency = SERVER_FIELDS["concurrency"].default,
    omit: Omit = None,
    cache: Cache = None,
    precision: AdapterPrecision = None,
    as_json: Json = False,
) -> None:
    """Score a trained adapter, or a prompt for a model's own head.

    Prints every metric of the task, the number of truncated texts, and how many of the rows the adapter was trained on.
    A prompt needs no adapter: --method names one in place of --adapter, and --model or --url the model that reads it.

      deltatune evaluate --adapter runs/train-reviews-lora-r-8 --data more-reviews.csv
      deltatune evaluate --adapter runs/train-webnlg-lora-r-8 --data webnlg --by category
      deltatune evaluate --model gpt2 --method "ICL(shots=8)" --data reviews.csv
      deltatune evaluate --url http://localhost:8000/v1 --name my-model --data reviews.csv --template "{text} {mask}"
    """
    from deltatune.training.open_session import open_adapter

    chosen = {
        **read_fields(fields),
        **set_values({"metric": metric, "positive": positive, "metric_model": metric_model}),
    }
    server = server_options(url, name, key, form, timeout, retries, concurrency, omit, cache)
    choice = PromptChoice(
        method, template, words, describe, text, label, task, max_length, seed, save, server, None, quantize
    )
    refused = {f"--part {part}": part, "--other-base": other_base, f"--weight {weight:g}": weight != 1}
    refused |= {f"--precision {precision}": precision}
    if choice.names_prompt(adapter, refused):
        source = one_source(data)
        with opened_prompt(choice, model, source, chosen) as prompt:
            score_rows(prompt.session, source, split, by, batch_size, as_json, prompt=prompt)
        return
    session = open_adapter(str(adapter), model, other_base, chosen, part, quantize).weighted(weight)
    session = session if precision is None else replace(session, precision=precision)
    if part is None and session.task.label_kind == "mixture":
        evaluate_parts(session, data, split, by, batch_size, as_json, {"adapter": adapter, "weight": weight})
        return
    score_rows(session, one_source(data, part), split, by, batch_size, as_json, adapter=adapter)


def score_rows(
    session: Session | ServerSession,
    source: str,
    split: str | None,
    by: Sequence[str] | None,
    batch_size: int,
    as_json: bool,
    adapter: str | None = None,
    prompt: OpenedPrompt | None = None,
) -> None:
    """Score the rows of one task and print the scores."""
    from deltatune.comparison.statistics.group_scores import group_rows

    weight = session.weight
    splits, notes = rows_of(session, source, split)
    groups = {name: [(column, group_rows(rows, column)) for column in by or ()] for name, rows in splits.items()}
    results = {name: scored(session, rows, batch_size, groups[name]) for name, rows in splits.items()}
    first, *others = results
    if as_json:
        result = results[first] | {"split": first, "data": source, "adapter": adapter, "model": session.model}
        result["weight"] = weight
        result |= {} if prompt is None else prompt.facts()
        print_json(result | ({"more_splits": {name: results[name] for name in others}} if others else {}))
        return
    left_out: list[str] = []
    if by:
        show(*(part for name in results for part in (groups_table(session.task, name, results[name], left_out), "")))
    else:
        show(scores_table(session.task, {name: result["scores"] for name, result in results.items()}), "")
    for name, result in results.items():
        total, of = len(splits[name]), f"{name}: " if others else ""
        notes += [of + note for note in overlap_notes(result["trained_on"], total, session.adapter.method)]
        notes += [of + note for note in result.get("notes", ())]
        if result["truncated"]:
            notes.append(of + long_texts(session.task, result["truncated"], total))
        notes += [
            f"{of}the {GROUPS_SHOWN} largest of {len(groups)} groups by {column} are shown; --json has all"
            for column, groups in result.get("by", {}).items()
            if len(groups) > GROUPS_SHOWN
        ]
        notes += [
            f"{of}{score(whole['share'])} of the {count(whole['groups'])} groups by {column} have no wrong row"
            for column, whole in result.get("whole_groups", {}).items()
        ]
    if weight != 1:
        notes.append(weight_note(weight))
    if left_out:
        notes.append(f"no room on this screen for {', '.join(dict.fromkeys(left_out))}; --json has them")
    counts = ", ".join(f"{count(len(rows))}{f' {name}' if others else ''}" for name, rows in splits.items())
    of_prompt = [] if prompt is None else prompt.spent()
    show(facts([("rows", f"{counts} from {source}"), *of_prompt, *(("note", note) for note in notes)]))


def evaluate_parts(
    session: Session,
    data: Sequence[str],
    split: str | None,
    by: Sequence[str] | None,
    batch_size: int,
    as_json: bool,
    facts_of_run: Mapping[str, Any],
) -> None:
    """Score the parts of a mixture, each on its own data, and their mean."""
    mixture: Any = session.task
    sources = sources_of_parts(mixture, data)
    if by:
        raise DeltatuneError(f"--by {by[0]} is for one part of a mixture: name it with --part")
    results: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, source in sources.items():
        own = session.for_part(name)
        splits, of_data = rows_of(own, source, split)
        for each, rows in splits.items():
            results.setdefault(each, {})[name] = result = scored(own, rows, batch_size)
            of = f"{name}, {each}: " if len(splits) > 1 else f"{name}: "
            notes += [of + note for note in overlap_notes(result["trained_on"], len(rows))]
            if result["truncated"]:
                notes.append(f"{of}{long_texts(own.task, result['truncated'], len(rows))}")
        notes += [f"{name}: {note}" for note in of_data]
    means = {
        each: mixture.mean_of({name: result["scores"] for name, result in parts.items()})
        for each, parts in results.items()
    }
    missing = [name for name in mixture.parts if name not in sources]
    if missing:
        notes.append(f"the mean is over {', '.join(sources)}: no data were named for {', '.join(missing)}")
    notes += [
        f"the mean of {each} is over {', '.join(parts)}: the other parts have no such split"
        for each, parts in results.items()
        if len(parts) < len(sources)
    ]
    if (weight := facts_of_run["weight"]) != 1:
        notes.append(weight_note(weight))
    first, *others = means
    if as_json:
        result = {"metric": mixture.metric, "scores": means[first], "parts": results[first], "split": first}
        more = {"more_splits": {each: {"scores": means[each], "parts": results[each]} for each in others}}
        print_json({**result, "data": sources, "model": session.model, **facts_of_run, **(more if others else {})})
        return
    show(*(part for each in means for part in (scores_table(mixture, {each: means[each]}), "")))
    counts = {
        each: ", ".join(f"{count(result['rows'])} from {sources[name]}" for name, result in parts.items())
        for each, parts in results.items()
    }
    rows_scored = counts[first] if not others else "; ".join(f"{each}: {of}" for each, of in counts.items())
    show(facts([("rows", rows_scored), *(("note", note) for note in notes)]))


def weight_note(weight: float) -> str:
    """What --weight did to the scores."""
    return f"the adapter's change was multiplied by {weight:g}; its head was used whole"
