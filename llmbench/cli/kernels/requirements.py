"""What the commands of `llmbench kernels` need: torch, Triton, and numpy for Triton's interpreter."""

from __future__ import annotations

from llmbench.cli.measured import import_torch
from llmbench.errors import CannotRunError, install_hint


def need_triton() -> None:
    """Raise CannotRunError unless torch and Triton are installed."""
    if (package := missing_package()) is not None:
        raise CannotRunError(f"`llmbench kernels` needs {package}, which is not installed", hint=install_hint("gpu"))
    import_torch()


def missing_package() -> str | None:
    """Return the name of a package that the kernels need and that is not installed, or None."""
    from importlib.util import find_spec

    return next((package for package in ("torch", "triton") if find_spec(package) is None), None)


def need_interpreter() -> None:
    """Raise CannotRunError if numpy is missing, or if Triton's interpreter cannot use the installed numpy."""
    from importlib import metadata
    from importlib.util import find_spec

    triton = metadata.version("triton")
    # The interpreter of Triton 3.6 uses arrays as loop bounds, which numpy 2.4 does not convert to integers.
    old = triton.startswith("3.6.")
    hint = "pip install 'numpy<2.4'" if old else "pip install numpy"
    if find_spec("numpy") is None:
        raise CannotRunError("Triton's interpreter needs numpy, which is not installed", hint=hint)
    numpy = metadata.version("numpy")
    if old and tuple(map(int, numpy.split(".")[:2])) >= (2, 4):
        raise CannotRunError(f"the interpreter of Triton {triton} cannot use numpy {numpy}", hint=hint)
