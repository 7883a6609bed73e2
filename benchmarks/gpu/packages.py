"""Find the packages that a run needs and this machine lacks. This module imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["NEEDED", "missing"]

NEEDED = ("torch", "triton", "numpy", "msgspec", "rich", "typer")
"""The packages that every run needs."""

OF_THE_MACHINE = ("torch", "triton", "numpy")
"""The packages that the machine must have, because their wheels are too large to be carried."""


def missing(names: Sequence[str] = NEEDED) -> str | None:
    """Return a text that says which packages are missing and what to do, or None if all are here."""
    absent = [name for name in names if find_spec(name) is None]
    if not absent:
        return None
    large = [name for name in absent if name in OF_THE_MACHINE]
    if large:
        hint = f"install {' and '.join(large)} on this machine, or let PYTHON name an interpreter that has them"
    else:
        hint = (
            "run `benchmarks/gpu_wheels.sh FOLDER` on a machine with network, copy FOLDER to this machine, and run "
            "`python -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=SITE`"
        )
    return f"missing Python package{'s' * (len(absent) > 1)}: {', '.join(absent)}\n\nhint: {hint}"
