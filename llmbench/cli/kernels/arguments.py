"""Arguments that the commands of `llmbench kernels` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from llmbench.errors import SpecError

T = TypeVar("T")

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

    return values_of(text, FORMATS, option="--dtype", noun="format")


def values_of(text: str, known: Mapping[str, T], *, option: str, noun: str) -> list[T]:
    """Return the values of the names in a comma-separated list.

    option, noun: the option with the list and what a name stands for, for messages.

    Raises SpecError for an unknown name or an empty list.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    hint = f"choose from {', '.join(known)}"
    for part in parts:
        if part not in known:
            raise SpecError(f"{option} {part}: unknown {noun}", hint=hint)
    if not parts:
        raise SpecError(f"{option} names no {noun}", hint=hint)
    return [known[part] for part in parts]
