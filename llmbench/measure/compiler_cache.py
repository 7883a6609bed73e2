"""Check the folder in which torch.compile keeps its compiled code. This module imports no torch."""

from __future__ import annotations

import os
from functools import cache
from tempfile import TemporaryFile, gettempdir

__all__ = ["compiler_cache_fault"]


@cache
def compiler_cache_fault() -> str | None:
    """Return why torch.compile cannot use its cache folder, or None if it can.

    torch creates this folder when it imports the compiler. Optimizers and FlexAttention import the compiler too. If the
    folder cannot be created, the import fails. In this case this function makes the root folder the cache folder of the
    process, so that the import succeeds, and `compiled` refuses to compile. Call it before the compiler is imported.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        # If the variable is not set, torch creates its folder in the folder for temporary files.
        folder = os.path.abspath(folder or gettempdir())
        os.makedirs(folder, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as problem:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.abspath(os.sep)
        reason = getattr(problem, "strerror", None) or problem
        return f"torch.compile cannot write into its cache folder {folder or ''}: {reason}"
    return None
