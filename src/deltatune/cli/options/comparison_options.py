"""Options of a comparison: its methods and budgets, how many runs of each, and where they run."""

from __future__ import annotations

from typing import Annotated

from deltatune.cli.options.prompt_options import PROMPTS
from deltatune.cli.options.shared_options import BUDGET, DATA, METHOD, OUTPUT, SETTINGS, TRAINING, option
from deltatune.cli.options.study_options import SEVERAL
from deltatune.cli.ui.help_screen import constant, parameter

PLAN = "comparison/plans/make_plan.py"
METHODS = constant(PLAN, "DEFAULT_METHODS")
PROMPTING_METHODS = constant(PLAN, "PROMPTING_METHODS")
DEFAULT_BUDGET = constant(PLAN, "DEFAULT_BUDGET")
START_SEEDS, MOST_SEEDS, START_DRAWS, MOST_DRAWS, DEFAULT_MARGIN = (
    constant(PLAN, name) for name in ("START_SEEDS", "MOST_SEEDS", "START_DRAWS", "MOST_DRAWS", "DEFAULT_MARGIN")
)
DEFAULT_RATES = parameter(PLAN, "make_plan", "rates")
RESULT = "comparison/result.py"
FEW_SHOT_STEPS, FEW_SHOT_BATCH = constant(RESULT, "FEW_SHOT_STEPS"), constant(RESULT, "FEW_SHOT_BATCH")
"""Training with --shots unless --epochs is given: a few epochs of a few rows would be a handful of steps."""

Methods = Annotated[
    list[str] | None,
    option(
        "--method",
        "--methods",
        panel=METHOD,
        metavar="METHOD",
        help=f"A method to compare; repeat the option for more. Default: {', '.join(METHODS)}.",
    ),
]
Budgets = Annotated[
    list[str] | None,
    option(
        "--budget",
        panel=METHOD,
        metavar="SIZE",
        help=f"{BUDGET} Every method with a size gets the largest that fits. Default: "
        f"{DEFAULT_BUDGET}; for named methods the sizes they are written with. {SEVERAL}",
    ),
]
PromptingToo = Annotated[
    bool,
    option(
        "--prompting",
        panel=PROMPTS,
        help=f"Compare prompts, label words and new heads: {', '.join(PROMPTING_METHODS)}; --method adds others.",
    ),
]
Draws = Annotated[
    int | None,
    option(
        "--draws",
        panel=DATA,
        metavar="COUNT",
        help="With --shots: draws of rows, the same for all methods. "
        f"Default: {START_DRAWS}, and up to {MOST_DRAWS} for methods that are not told apart.",
    ),
]
Seeds = Annotated[
    int | None,
    option(
        "--seeds",
        panel=TRAINING,
        metavar="COUNT",
        help="Runs of each method at its best learning rate; with --shots, on each draw. "
        f"Default: {START_SEEDS}, and up to {MOST_SEEDS} for methods that are not told apart; with --shots 1.",
    ),
]
Margin = Annotated[
    float | None,
    option(
        "--margin",
        panel=TRAINING,
        metavar="SCORE",
        help="Methods whose scores surely differ by less count as equal and get no more runs. "
        f"Default: {DEFAULT_MARGIN:g} for scores up to 1.",
    ),
]
Minutes = Annotated[
    float | None,
    option(
        "--minutes",
        panel=TRAINING,
        metavar="NUMBER",
        help="Time for all: rows are left out where they would take longer; runs are added while there is time.",
    ),
]
Rates = Annotated[
    int, option("--rates", panel=TRAINING, metavar="COUNT", help="Learning rates to try for each method.")
]
EpochsOrFewShot = Annotated[
    float | None,
    option(
        "--epochs",
        panel=TRAINING,
        metavar="NUMBER",
        help=f"{SETTINGS['epochs'].help}. Default: {SETTINGS['epochs'].default:g}; with --shots "
        f"{FEW_SHOT_STEPS} steps of {FEW_SHOT_BATCH} rows.",
    ),
]
Workers = Annotated[
    int | None,
    option(
        "--workers",
        panel=OUTPUT,
        metavar="COUNT",
        help="Trainings at once. Default: one a core, or a GPU, as memory allows; 1 where all is short.",
    ),
]
ExecutorName = Annotated[
    str,
    option(
        "--executor",
        panel=OUTPUT,
        metavar="NAME",
        help="Where trainings run: local, ray, or the address of a Ray cluster (needs deltatune[ray]).",
    ),
]
