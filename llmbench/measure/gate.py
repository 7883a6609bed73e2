"""Right before fast: rivals are checked first, those that pass are timed together, and each becomes a row.

A rival that computes something else is a row "INCORRECT" without a time; one that has no room is "OOM" with what it
should have needed; one that this machine or this shape does not have is "n/a" with the reason; anything else that goes
wrong is "FAILED". No row ends a sweep. Rows of rivals that cannot be timed come at once, so that an interruption leaves
them in the file.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.kernels.accuracy import Verdict, tf32_products
from llmbench.measure.clock import Call, Clock, compare
from llmbench.measure.energy import Energy, energy_of
from llmbench.measure.graphs import captured
from llmbench.measure.launches import attention_kernels
from llmbench.measure.measurement import Measurement
from llmbench.measure.memory import peak_memory
from llmbench.measure.results import Check, Row, Scalar, Status
from llmbench.model.devices import free_bytes

__all__ = ["ADDRESSABLE_BYTES", "Rival", "measured"]

ADDRESSABLE_BYTES = 2**57
"""As much as the widest addresses of today reach (five levels of pages on x86-64); sizes beyond overflow in torch."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One implementation of something.

    `prepare()` makes inputs and gives back the call to time; what rivals share they share outside. `check()` gives
    verdicts (`kernels.accuracy.held`), at a size that leaves room for fp64: None where nothing is to be held against
    it, as for the reference itself. `need_bytes` is the analytic need of inputs and call; the rest is copied into the
    row.
    """

    name: str
    prepare: Callable[[], Call]
    check: Callable[[], Sequence[Verdict]] | None = None
    need_bytes: int | None = None
    work_flops: int | None = None
    work_bytes: int | None = None
    predicted_s: float | None = None
    figures: Mapping[str, Scalar] = field(default_factory=dict)


def measured(
    rivals: Sequence[Rival],
    *,
    experiment: str,
    case: Mapping[str, Scalar],
    clock: Clock,
    budget_s: float = 1.0,
    energy: bool = False,
    attention: bool = False,
    **sampling: Any,
) -> Iterator[Row]:
    """A row for every rival, those without a time first. `budget_s` is that of all together; `sampling` goes on to
    `clock.compare`. With `energy` each runs for a second more, with `attention` the attention kernels are named."""

    def row(rival: Rival, status: Status, **found: Any) -> Row:
        return Row(
            experiment=experiment,
            case=dict(case),
            implementation=rival.name,
            status=status,
            need_bytes=rival.need_bytes,
            work_flops=rival.work_flops,
            work_bytes=rival.work_bytes,
            predicted_s=rival.predicted_s,
            figures=dict(rival.figures),
            **found,
        )

    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    for rival in rivals:
        with tf32_products(clock.device):
            passed = _passed(rival, clock.device, attention)
        if isinstance(passed, _Fault):
            yield row(rival, passed.status, reason=passed.reason, checks=passed.checks)
        else:
            calls[rival.name], found[rival.name] = passed
    failed: dict[str, Exception] = {}
    times = compare(calls, clock=clock, budget_s=budget_s, failed=failed, **sampling)
    for rival in rivals:
        if rival.name in failed:
            fault = _fault(failed.pop(rival.name), ())
            yield row(rival, fault.status, reason=fault.reason, **found[rival.name])
        elif rival.name in times:
            joules = _energy(calls[rival.name], times[rival.name], clock.device) if energy else None
            yield row(rival, "ok", measurement=times[rival.name], energy=joules, **found[rival.name])


def _energy(call: Call, timed: Measurement, device: torch.device) -> Energy | None:
    """Joules of a call, launched as it was timed; None where that cannot be known."""
    with tf32_products(device):
        try:
            return energy_of(captured(call, device, "it") if timed.clock == "cuda-graph" else call, device)
        except CannotRunError:  # a graph held it before, and no longer does
            return None


class _Fault(NamedTuple):
    """Why a rival has no time."""

    status: Status
    reason: str
    checks: tuple[Check, ...] = ()


def _passed(rival: Rival, device: torch.device, attention: bool) -> tuple[Call, dict[str, Any]] | _Fault:
    """The rival's call and what is known of it, once it is right and has run."""
    checks: tuple[Check, ...] = ()
    try:
        if rival.need_bytes is not None:
            if rival.need_bytes >= ADDRESSABLE_BYTES:
                return _Fault("OOM", "not tried: no machine addresses so much")
            free = free_bytes(device) if device.type == "cpu" else None
            if free is not None and rival.need_bytes > free:
                # Linux gives what it does not have, and ends the process that uses it
                return _Fault("OOM", f"not tried: {free:,} bytes are free")
        if rival.check is not None:
            checks = tuple(Check.of(verdict) for verdict in rival.check())
            if not all(check.passed for check in checks):
                return _Fault("INCORRECT", _faults(checks), checks)
        call = rival.prepare()
        call()  # compiles, tunes, fills pools
        memory = peak_memory(call, device)
        kernels = attention_kernels(call, device) if attention else ()
        return call, {"checks": checks, "memory": memory, "kernels": kernels}
    except Exception as problem:
        fault = _fault(problem, checks)
        if fault.status == "OOM" and rival.check is not None and not checks:
            fault = fault._replace(reason=f"in its check, in fp64: {fault.reason}")
    # outside, where the error is gone, and with it the frames that kept its tensors
    if fault.status == "OOM":
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return fault


def _faults(checks: Sequence[Check], most: int = 3) -> str:
    """What is wrong, for a reader: the first of it."""
    faults = [check.fault() for check in checks if not check.passed]
    more = f"; {len(faults) - most} more of {len(checks)} tensors" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more


NO_ROOM = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""How RuntimeErrors say that memory is short, where it is not torch's own allocator that says so."""


def _fault(problem: Exception, checks: tuple[Check, ...]) -> _Fault:
    """What an error means for a row."""
    text = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(problem) for sign in NO_ROOM):
        return _Fault("OOM", text, checks)
    if isinstance(problem, (UnsupportedError, CannotRunError, NotImplementedError)):
        return _Fault("n/a", text, checks)
    return _Fault("FAILED", f"{type(problem).__name__}: {text}", checks)
