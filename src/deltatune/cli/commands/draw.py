"""`deltatune draw`: pictures of a text-to-image pipeline with trained adapters, at one weight or over a slider."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.shared_options import DATA, OUTPUT, Json, OtherBase, OtherModel, option
from deltatune.cli.ui.screen import plural, print_json, say
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.input_validation.strict_json import dumps
from deltatune.store import run_folder
from deltatune.store.atomic_files import make_folder, write_file

if TYPE_CHECKING:
    from deltatune.core.host import Host
    from deltatune.models.pipelines import ImagePipeline

GRID, FACTS = "grid.png", "pictures.json"


def draw(
    text: Annotated[
        list[str] | None,
        option("--text", panel=DATA, metavar="PROMPT", help="What to draw; give it again for more pictures."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        option(
            "--adapter",
            "-a",
            panel=DATA,
            metavar="FOLDER[=WEIGHT]",
            help="A trained adapter, or the folder of its training run, also a LoRA of diffusers; give it again for "
            "several at once, each with its weight. Without one the bare model draws.",
        ),
    ] = None,
    model: OtherModel = None,
    other_base: OtherBase = False,
    weight: Annotated[
        list[float] | None,
        option(
            "--weight",
            panel=DATA,
            metavar="NUMBER",
            help="Factor on the adapters' weights: 0 is the model without them. Give it again for a slider, the "
            "columns of grid.png. Default: 1.",
        ),
    ] = None,
    steps: Annotated[
        int, option("--steps", panel=DATA, metavar="NUMBER", help="Denoising steps of a picture.", min=1)
    ] = 30,
    guidance: Annotated[
        float | None,
        option(
            "--guidance",
            panel=DATA,
            metavar="NUMBER",
            help="Scale of classifier-free guidance. Default: the pipeline's.",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        option("--resolution", panel=DATA, metavar="PIXELS", help="Pixels of a side. Default: as in training.", min=1),
    ] = None,
    seed: Annotated[
        int,
        option(
            "--seed",
            panel=DATA,
            metavar="NUMBER",
            help="Seed of the noise, the same at every weight.",
            min=0,
        ),
    ] = 0,
    out: Annotated[
        Path,
        option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Folder of the pictures."),
    ] = Path("pictures"),
    force: Annotated[bool, option("--force", panel=OUTPUT, help="Replace pictures that are in that folder.")] = False,
    as_json: Json = False,
) -> None:
    """Draw pictures with trained adapters of a text-to-image pipeline, at one weight or over a slider of weights.

    Each picture is a PNG file; of several, grid.png shows prompts by weights, and pictures.json says how each was made.
    Pictures of one prompt start from the same noise at every weight. Everything is computed in float32.

      deltatune draw --adapter runs/train-hollow-lora-r-8 --text "a red circle"
      deltatune draw --adapter runs/hollow --text "a red circle" --weight 0 --weight 0.5 --weight 1 --out slider
      deltatune draw --adapter runs/hollow=0.7 --adapter runs/night=0.4 --text "a red circle" --text "a blue square"
    """
    prompts, weights, out = text or [], weight or [1.0], expanded(out)
    if not prompts:
        raise DeltatuneError('--text is missing: what to draw, such as --text "a red circle"')
    named = [weighted(each) for each in adapter or []]
    problems = [f"--text {prompt!r} is empty" for prompt in prompts if not prompt.strip()]
    problems += [
        f"--weight {each} is no finite number" for each in weights if each != each or abs(each) == float("inf")
    ]
    shown = Counter(f"{each:g}" for each in weights)  # as the files are named
    problems += [f"--weight {each} is given twice" for each, times in shown.items() if times > 1]
    folders = [folder for folder, _ in named]
    problems += [
        f"--adapter {each} is given twice; --adapter {each}=2 doubles its weight"
        for each, times in Counter(folders).items()
        if times > 1
    ]
    if guidance is not None and (guidance != guidance or abs(guidance) == float("inf")):
        problems.append(f"--guidance {guidance} is no finite number")
    if len(weights) > 1 and not named:
        problems.append("several --weight are a slider of an adapter: name one with --adapter")
    if not named and model is None:
        problems.append("name an adapter (--adapter), or with --model a pipeline that draws without one")
    raise_all(problems)
    names = {
        (i, j): file_name(i, prompt, factor if len(weights) > 1 else None)
        for i, prompt in enumerate(prompts)
        for j, factor in enumerate(weights)
    }
    grid = GRID if len(names) > 1 else None
    check_folder(out, [*names.values(), FACTS, *([grid] if grid else [])], force)

    from deltatune.training.inference.pictures import picture_grid, png, slider

    host, pipeline, trained_at = open_drawing(folders, model, other_base)
    side = resolution or trained_at or pipeline.resolution
    if side % pipeline.multiple:
        raise DeltatuneError(f"--resolution {side}: this model takes multiples of {pipeline.multiple}")
    shares = {f"a{i}": share for i, (_, share) in enumerate(named)}
    options: dict[str, Any] = {"seed": seed, "resolution": side, "steps": steps, "guidance": guidance}
    rows = slider(host, pipeline, prompts, shares, weights, **options)
    make_folder(out)
    for (i, j), name in names.items():
        write_file(out / name, png(rows[i][j]))
    if grid:
        write_file(out / grid, png(picture_grid(rows, prompts, [f"{each:g}" for each in weights])))
    made = [
        {"file": name, "prompt": prompts[i], "adapters": {n: share * weights[j] for n, share in named}}
        for (i, j), name in names.items()
    ]
    facts = {"pictures": made, "grid": grid, **options}
    write_file(out / FACTS, dumps(facts, out / FACTS, indent=2) + "\n")
    if as_json:
        print_json({"folder": str(out), **facts})
    else:
        say(f"{plural(len(made), 'picture')} in {out}" + (f"; all of them: {out / grid}" if grid else ""))


def weighted(text: str) -> tuple[str, float]:
    """The folder and the weight of `FOLDER=WEIGHT`; 1 where there is none. Raises DeltatuneError for no number."""
    folder, sign, number = text.rpartition("=")
    if not sign or expanded(text).exists():
        return text, 1.0
    try:
        share = float(number)
    except ValueError:
        raise DeltatuneError(f"--adapter {text}: {number!r} is no weight; write FOLDER=0.7") from None
    if share != share or abs(share) == float("inf"):
        raise DeltatuneError(f"--adapter {text}: the weight must be a finite number")
    return folder, share


def file_name(number: int, prompt: str, factor: float | None) -> str:
    """`01-a-red-circle.png`, with the weight where there are several."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    parts = [f"{number + 1:02}", *([words] if words else []), *([] if factor is None else [f"weight-{factor:g}"])]
    return f"{'-'.join(parts)}.png"


def check_folder(out: Path, names: list[str], force: bool) -> None:
    """Raise DeltatuneError where the folder is a file, or holds pictures of these names already."""
    if out.exists() and not out.is_dir():
        raise DeltatuneError(f"--out {out} is a file; name a folder")
    there = [name for name in names if (out / name).exists()]
    if there and not force:
        raise DeltatuneError(f"--out {out} holds {there[0]} already; name another folder, or replace it with --force")


def open_drawing(folders: list[str], model: str | None, other_base: bool) -> tuple[Host, ImagePipeline, int | None]:
    """The pipeline of these adapters with all of them on its denoiser (a0, a1, ...), and the pixels they learned from.

    Raises DeltatuneError for adapters of other tasks or of another pipeline.
    """
    from deltatune.core.host import Host
    from deltatune.models.hardware import best_device
    from deltatune.models.pipelines import load_pipeline
    from deltatune.store import adapter_folder
    from deltatune.training.open_session import check_tokenizer

    paths = [run_folder.find_adapter(folder) for folder in folders]
    raise_all([f"there is no adapter {path}{_beside(path)}" for path in paths if not path.exists()])
    configs = [adapter_folder.read_config(path) if adapter_folder.knows(path) else {} for path in paths]
    extras = [config.get("extra") or {} for config in configs]
    tasks = [extra.get("task") or {} for extra in extras]
    raise_all([
        f"{path} was trained for {task['task']}, not for image: deltatune predict uses it"
        for path, task in zip(paths, tasks, strict=True)
        if task.get("task", "image") != "image"
    ])  # fmt: skip
    place = model or next((str(extra["model"]) for extra in extras if extra.get("model")), None)
    if place is None:
        raise DeltatuneError(f"{paths[0]} does not say which pipeline it belongs to: name it with --model")
    pipeline = load_pipeline(place, best_device())
    host = Host(pipeline.denoiser)
    for i, (path, extra) in enumerate(zip(paths, extras, strict=True)):
        host.load(path, name=f"a{i}", other_base=other_base)
        if not other_base:
            check_tokenizer(path, pipeline, extra)  # type: ignore[arg-type]  # it has the tokenizer's place
    return host, pipeline, next((int(task["resolution"]) for task in tasks if task.get("resolution")), None)


def _beside(path: Path) -> str:
    return nearest(path.name, [each.name for each in path.parent.iterdir()]) if path.parent.is_dir() else ""
