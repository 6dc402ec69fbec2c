"""The page that follows a running comparison or study: it asks the local server for its content every two seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.html_page import definitions, html_page, table_region
from deltatune.comparison.report.number_format import html
from deltatune.comparison.results.run_state import MethodState, RunState, StudyState

SCRIPT = """
const content = document.getElementById("state");
async function refresh() {
  try {
    const answer = await fetch("/state", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const text = await answer.text();
    if (text !== refresh.last) content.innerHTML = refresh.last = text;
    document.body.classList.remove("lost");
  } catch (error) {
    document.body.classList.add("lost");
  }
  setTimeout(refresh, 2000);
}
refresh();
"""
"""Asks for the content again and again; where no server answers any more, what was last shown stays, greyed."""
FILES = "/files/"
"""Where the server has the files of the run's folder."""


def watch_page(state: RunState | StudyState) -> str:
    """The whole page, with the state of now; text from data is escaped."""
    return html_page(
        title=state.folder.resolve().name or str(state.folder),
        eyebrow="deltatune watch",
        facts=[("Folder", str(state.folder))],
        main=[f'<div id="state" aria-live="polite">{watch_content(state)}</div>'],
        footer="This page follows the run and writes nothing. It is served to this machine alone.",
        script=SCRIPT,
        policy="connect-src 'self'",
    )


def watch_content(state: RunState | StudyState) -> str:
    """What changes: progress, the table so far, failures."""
    return _study(state) if isinstance(state, StudyState) else _run(state)


def _run(run: RunState) -> str:
    shown = [("State", state_text(run)), ("Finished runs", progress_text(run))]
    if run.elapsed_seconds is not None:
        shown.append(("Time so far" if run.state == "running" else "Duration", formats.seconds(run.elapsed_seconds)))
    if run.seconds_left is not None:
        shown.append(("Time left, about", formats.seconds(run.seconds_left)))
    bar = ""
    if run.total and run.state == "running":
        bar = f'<progress max="{run.total}" value="{min(run.done, run.total)}">{run.done} of {run.total}</progress>'
    now = "".join(f"<li>{html(step)}</li>" for step in run.now)
    link = _link(run.report, run.folder, run.name, "The report")
    return (
        f'<dl class="facts">{definitions(shown)}</dl>{bar}'
        + (f'<section class="recommendation"><p>{html(run.sentence)}</p></section>' if run.sentence else "")
        + (f"<p>{link}</p>" if link else "")
        + (f"<section><h2>Now</h2><ul>{now}</ul></section>" if now else "")
        + _methods(run)
        + _failed(run.failures)
    )


def _methods(run: RunState) -> str:
    if not run.methods:
        return ""
    rows = "".join(_method(each) for each in run.methods)
    head = '<th class="c-method">Method</th><th>Runs</th><th>Validation</th><th>Learning rate</th><th>Test</th>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    title = "Results" if run.state == "finished" else "So far"
    return f"<section><h2>{title}, {html(run.metric)}</h2>{table_region(table, title)}</section>"


def _method(method: MethodState) -> str:
    runs = method.tested if method.runs == 0 else method.runs
    failed = f"<small>{method.failed} failed</small>" if method.failed else ""
    test = formats.score(method.test) + (f"<small>of {method.tested}</small>" if method.tested else "")
    return (
        f'<tr><th scope="row" class="c-method"><b>{html(method.method)}</b></th><td>{runs}{failed}</td>'
        f"<td>{formats.score(method.validation)}</td><td>{formats.rate(method.rate)}</td><td>{test}</td></tr>"
    )


def _study(study: StudyState) -> str:
    done = sum(run.state == "finished" for run in study.runs)
    shown = [("State", study.state), ("Comparisons", f"{done} of {len(study.runs)} finished")]
    current = next((run for run in study.runs if run.state == "running"), None)
    link = _link(study.report, study.folder, "", "The report of the study, as far as it is")
    rows = "".join(_study_row(run, study.folder) for run in study.runs)
    head = '<th class="c-method">Comparison</th><th class="text">State</th><th>Runs</th><th class="text">So far</th>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return (
        f'<dl class="facts">{definitions(shown)}</dl>'
        + (f'<section class="recommendation"><p>{html(study.sentence)}</p></section>' if study.sentence else "")
        + (f"<p>{link}</p>" if link else "")
        + f"<section><h2>Comparisons</h2>{table_region(table, 'Comparisons')}</section>"
        + (f"<section><h2>{html(current.name)}</h2>{_run(current)}</section>" if current else "")
        + _failed([f"{run.name}: {failure}" for run in study.runs for failure in run.failures])
    )


def _study_row(run: RunState, folder: Path) -> str:
    name = _link(run.report, folder, run.name, run.name) or html(run.name)
    return (
        f'<tr><th scope="row" class="c-method">{name}</th><td class="text">{html(run.state)}</td>'
        f'<td>{html(progress_text(run))}</td><td class="text">{html(formats.clip(run.sentence, 300))}</td></tr>'
    )


def _failed(failures: Sequence[str]) -> str:
    items = "".join(f"<li><pre>{html(formats.clip(failure, 600))}</pre></li>" for failure in failures)
    return f'<section class="failures"><h2>Failed</h2><ul>{items}</ul></section>' if items else ""


def _link(report: Path | None, folder: Path, name: str, words: str) -> str:
    """A link to a report, if there is one."""
    if report is None:
        return ""
    inner = f"{name}/{report.name}" if name else report.name
    return f'<a href="{FILES}{html(quote(inner))}">{html(words)}</a>'


def state_text(run: RunState) -> str:
    """The state in words."""
    return "stopped before its end: the same command resumes it" if run.state == "stopped" else run.state


def progress_text(run: RunState) -> str:
    """`12 of 46`, or the finished ones where no one knows how many there will be."""
    return f"{run.done} of {run.total}" if run.total and run.state != "finished" else str(run.done)
