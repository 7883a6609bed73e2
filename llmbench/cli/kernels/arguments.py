"""Arguments that the commands of `llmbench kernels` share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmbench.errors import SpecError

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Names of kernels. Default: all kernels.", show_default=False),
]
DTypes = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="LIST",
        help="Number formats, separated by commas: bf16, fp16, fp32. A kernel that supports none of these formats runs "
        "in all formats that it supports.",
    ),
]


def known_names(names: list[str] | None) -> tuple[str, ...]:
    """Return `names`, or the names of all kernels if `names` is empty. Raises UnknownNameError for an unknown name."""
    from llmbench.kernels.registry import KERNELS, load_kernel

    for name in names or ():
        load_kernel(name)
    return tuple(names or KERNELS)


def named_formats(text: str) -> list[Any]:
    """Return the torch dtypes of a comma-separated list. Raises SpecError for an unknown format or an empty list."""
    from llmbench.kernels.formats import FORMATS

    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in FORMATS:
            raise SpecError(f"--dtype {part}: unknown format", hint=f"choose from {', '.join(FORMATS)}")
    if not parts:
        raise SpecError("--dtype names no format", hint=f"choose from {', '.join(FORMATS)}")
    return [FORMATS[part] for part in parts]
