"""Options of preferences: the loss, and the reference that rewards are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.shared_options import TASK_NAMES, TRAINING, option, set_values
from deltatune.core.errors import raise_all

if TYPE_CHECKING:
    from deltatune.data import Data

OF = "With --task prefer:"
LOSSES = ("sigmoid", "ipo", "hinge")
Loss = Annotated[
    str | None,
    option("--loss", panel=TRAINING, metavar="KIND", help=f"{OF} sigmoid (DPO), ipo or hinge. Default: sigmoid."),
]
Beta = Annotated[
    float | None,
    option(
        "--beta",
        panel=TRAINING,
        metavar="NUMBER",
        help=f"{OF} how strongly the adapter is held to the reference. Default: 0.1.",
    ),
]
LabelSmoothing = Annotated[
    float | None,
    option(
        "--label-smoothing",
        panel=TRAINING,
        metavar="SHARE",
        help=f"{OF} share of pairs that are labelled the wrong way round. Default: 0.",
    ),
]
Reference = Annotated[
    str | None,
    option(
        "--reference",
        panel=TRAINING,
        metavar="WHICH",
        help=f"{OF} base, the model without adapters, or start, the adapter of --from as it is. Default: the model as "
        "it is before training.",
    ),
]


def preference_fields(
    data: Data, loss: str | None, beta: float | None, label_smoothing: float | None, reference: str | None, start: Any
) -> dict[str, Any]:
    """The fields of a preference task that the options set. Raises DeltatuneError if the data are for another task."""
    given = {"loss_type": loss, "beta": beta, "label_smoothing": label_smoothing, "reference": reference}
    options = {"loss_type": "--loss"}
    if data.task != "prefer":
        task = TASK_NAMES.get(data.task, data.task)
        names = [options.get(name, f"--{name.replace('_', '-')}") for name in set_values(given)]
        raise_all([f"{name} is for --task prefer; this task is {task}" for name in names])
        return {}
    problems = []
    if loss not in (None, *LOSSES):
        problems.append(f"--loss {loss}: choose sigmoid (which is DPO), ipo or hinge")
    if reference not in (None, "base", "start"):
        problems.append(f"--reference {reference}: choose base or start")
    if reference == "start" and start is None:
        problems.append("--reference start is the adapter that training starts from: name it with --from")
    raise_all(problems)
    return set_values(given)
