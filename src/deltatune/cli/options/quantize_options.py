"""`--quantize` and `--precision`: how a base is stored, and what a trained adapter is computed in."""

from __future__ import annotations

from typing import Annotated

from deltatune.cli.options.shared_options import CHECK_PRECISION, DATA, option
from deltatune.core.errors import DeltatuneError

QUANTIZE = (
    "How the linear maps of the model's blocks are stored: nf4 (4 bits, as in QLoRA), fp4, int8, with fields as in "
    "NF4(double=False), or none."
)


def scheme_name(text: str | None) -> str | None:
    """A callback: the one text of a scheme, `none` too. Raises DeltatuneError for others."""
    if text is None:
        return None
    from deltatune.core.quantization.schemes import scheme_text

    try:
        return scheme_text(text) or "none"
    except DeltatuneError as error:
        raise DeltatuneError(f"--quantize {text}: {error}") from None


def scheme_names(texts: list[str] | None) -> list[str] | None:
    """`scheme_name` of an option that may be repeated."""
    return None if not texts else [str(scheme_name(text)) for text in texts]


Quantize = Annotated[
    str | None,
    option("--quantize", panel=DATA, metavar="SCHEME", help=f"{QUANTIZE} Default: none.", callback=scheme_name),
]
AdapterQuantize = Annotated[
    str | None,
    option(
        "--quantize",
        panel=DATA,
        metavar="SCHEME",
        help=f"{QUANTIZE} Default: as it was when the adapter was trained; another way needs --other-base.",
        callback=scheme_name,
    ),
]
AdapterPrecision = Annotated[
    str | None,
    option(
        "--precision",
        panel=DATA,
        metavar="KIND",
        help="auto, float32 or bfloat16. Default: as in training.",
        callback=CHECK_PRECISION,
    ),
]
