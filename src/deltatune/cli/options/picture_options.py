"""Options of text to image: how pictures are cut, the weights of the loss, and the prompts of the sample pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.shared_options import DATA, TASK_NAMES, TRAINING, one_of, option, set_values
from deltatune.core.errors import raise_all

if TYPE_CHECKING:
    from deltatune.data import Data

OF = "With --task image:"
Resolution = Annotated[
    int | None,
    option(
        "--resolution",
        panel=DATA,
        metavar="PIXELS",
        help=f"{OF} pixels of a side. Default: those of the model's config.",
    ),
]
Crop = Annotated[
    str | None,
    option(
        "--crop",
        panel=DATA,
        metavar="HOW",
        help=f"{OF} center (the default) cuts a square out of the middle, none squeezes the picture into one.",
        callback=one_of("--crop", ("center", "none")),
    ),
]
Flip = Annotated[
    bool, option("--flip", panel=DATA, help=f"{OF} mirror pictures from left to right in half of the steps.")
]
MinSNR = Annotated[
    float | None,
    option(
        "--min-snr",
        panel=TRAINING,
        metavar="GAMMA",
        help=f"{OF} weigh the loss by min-SNR with this gamma (5 in its paper). Default: all times weigh the same.",
    ),
]
SamplePrompts = Annotated[
    list[str] | None,
    option(
        "--sample",
        panel=DATA,
        metavar="PROMPT",
        help=f"{OF} draw this prompt at the end, without the adapter and with it; give it again for more. Default: "
        "four captions; an empty text draws nothing.",
    ),
]


def picture_fields(
    data: Data,
    resolution: int | None,
    crop: str | None,
    flip: bool,
    min_snr: float | None,
    sample: list[str] | None,
) -> dict[str, Any]:
    """The fields of text to image that the options set. Raises DeltatuneError if the data are for another task."""
    given = {"resolution": resolution, "crop": crop, "flip": flip or None, "min_snr": min_snr, "sample": sample or None}
    if data.task != "image":
        task = TASK_NAMES.get(data.task, data.task)
        raise_all(
            [f"--{name.replace('_', '-')} is for --task image; this task is {task}" for name in set_values(given)]
        )
        return {}
    del given["sample"]
    prompts = tuple(prompt for prompt in sample or () if prompt.strip())
    chosen = {"sample_prompts": prompts, "samples": len(prompts)} if sample else {}
    return {**set_values(given), **chosen}
