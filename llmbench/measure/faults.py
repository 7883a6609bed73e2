"""Derive the status of a row (INCORRECT, OOM, n/a or FAILED) from the error that a candidate raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.measure.results import Check, Status

__all__ = ["Fault", "IncorrectError", "fault_of", "is_out_of_memory"]

OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Texts in a RuntimeError that mean out of memory. torch's GPU allocator raises torch.OutOfMemoryError instead."""


class Fault(NamedTuple):
    """The status of a candidate without a time, the reason, and the checks that ran before the error."""

    status: Status
    reason: str
    checks: tuple[Check, ...] = ()

    def with_bytes_of_others(self, other_bytes: int) -> Fault:
        """Add to the reason of an OOM that the other candidates of the case were using `other_bytes` bytes.

        All candidates of a case stay in memory together, because they are timed in turn.
        """
        if self.status != "OOM" or not other_bytes:
            return self
        return self._replace(reason=f"{self.reason} (other candidates were using {other_bytes:,} bytes)")


class IncorrectError(Exception):
    """A candidate's result differs from the reference by more than the error budget. `checks`: one check per tensor."""

    def __init__(self, checks: tuple[Check, ...]) -> None:
        super().__init__(checks)
        self.checks = checks


def fault_of(problem: Exception) -> Fault:
    """Return the status and the reason that a row gets for an error. The reason includes the notes of the error."""
    notes = getattr(problem, "__notes__", ())
    if isinstance(problem, IncorrectError):
        return Fault("INCORRECT", "; ".join((_failed_checks(problem.checks), *notes)), problem.checks)
    text = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    text = "; ".join((text, *notes))
    if is_out_of_memory(problem):
        return Fault("OOM", text)
    if isinstance(problem, (UnsupportedError, CannotRunError, NotImplementedError)):
        return Fault("n/a", text)
    return Fault("FAILED", f"{type(problem).__name__}: {text}")


def is_out_of_memory(problem: Exception) -> bool:
    """Return whether an error means that a device has too little memory."""
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(problem) for sign in OUT_OF_MEMORY
    )


def _failed_checks(checks: Sequence[Check], most: int = 3) -> str:
    """Return a text with the first `most` failed checks, and with the number of further failed checks."""
    faults = [check.fault() for check in checks if not check.passed]
    more = f"; {len(faults) - most} more of {len(checks)} tensors" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more
