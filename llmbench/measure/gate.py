"""Right before fast: rivals are checked first, those that pass are timed together, and each becomes a row.

A rival that computes something else is a row "INCORRECT" without a time; one that has no room is "OOM" with what it
should have needed; one that this machine or this shape does not have is "n/a" with the reason; anything else that goes
wrong is "FAILED". No row ends a sweep, but that of a rival which takes the GPU or other ranks with it. Rows of rivals
that cannot be timed come at once, so that an interruption leaves them in the file.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.kernels.proof.accuracy import Verdict, tf32_products
from llmbench.measure.clock import Call, Clock, compare
from llmbench.measure.energy import Energy, energy_of
from llmbench.measure.graphs import captured
from llmbench.measure.launches import attention_kernels
from llmbench.measure.lost import LostError, running
from llmbench.measure.measurement import Measurement
from llmbench.measure.memory import kept_bytes, peak_memory
from llmbench.measure.results import ENDED_SESSION, Check, Row, Scalar, Status
from llmbench.model.devices import free_bytes

__all__ = ["ADDRESSABLE_BYTES", "Company", "Fault", "Rival", "fault_of", "measured"]

T = TypeVar("T")

ADDRESSABLE_BYTES = 2**57
"""As much as the widest addresses of today reach (five levels of pages on x86-64); sizes beyond overflow in torch."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One implementation of something.

    `prepare()` makes inputs and gives back the call to time; what rivals share they share outside. `check()` gives
    verdicts (`kernels.accuracy.held`), at a size that leaves room for fp64: None where nothing is to be held against
    it, as for the reference itself. `need_bytes` is the analytic need of inputs and call. `compiled`: some of it is by
    torch.compile, whose memory on a CPU nothing counts. The rest is copied into the row.
    """

    name: str
    prepare: Callable[[], Call]
    check: Callable[[], Sequence[Verdict]] | None = None
    need_bytes: int | None = None
    work_flops: int | None = None
    work_bytes: int | None = None
    predicted_s: float | None = None
    figures: Mapping[str, Scalar] = field(default_factory=dict)
    compiled: bool = False


class Company(Protocol):
    """Who measures the same at the same time; `processes` of them share this one's memory."""

    @property
    def processes(self) -> int:
        """This one among them."""
        ...

    def agreed(self, action: Callable[[], T]) -> T:
        """What `action` gives. Where it raises for anyone, it raises for all."""
        ...


class _Alone:
    """Nobody."""

    processes = 1

    def agreed(self, action: Callable[[], T]) -> T:
        return action()


_ALONE: Company = _Alone()


def measured(
    rivals: Sequence[Rival],
    *,
    experiment: str,
    case: Mapping[str, Scalar],
    clock: Clock,
    company: Company = _ALONE,
    budget_s: float = 1.0,
    energy: bool = False,
    attention: bool = False,
    **sampling: Any,
) -> Iterator[Row]:
    """A row for every rival, those without a time first. `budget_s` is that of all together; `sampling` goes on to
    `clock.compare`. With `energy` each runs for a second more, with `attention` the attention kernels are named.

    Raises LostError where a rival takes the GPU or other ranks with it: the last row is its own then, and of those that
    were still to be timed there is none.
    """

    def row(rival: Rival, status: Status, figures: Mapping[str, Scalar] | None = None, **found: Any) -> Row:
        return Row(
            experiment=experiment,
            case=dict(case),
            implementation=rival.name,
            status=status,
            need_bytes=rival.need_bytes,
            work_flops=rival.work_flops,
            work_bytes=rival.work_bytes,
            predicted_s=rival.predicted_s,
            figures={**rival.figures, **(figures or {})},
            **found,
        )

    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    kept: dict[str, int] = {}
    failed: dict[str, Exception] = {}
    try:
        for rival in rivals:
            with tf32_products(clock.device), running(rival.name):
                before = kept_bytes(clock.device)
                passed = _passed(rival, clock, attention, company)
                more = max(kept_bytes(clock.device) - before, 0)
            if isinstance(passed, Fault):
                addressable = rival.need_bytes is None or rival.need_bytes < ADDRESSABLE_BYTES
                fault = passed.beside(sum(kept.values()) if addressable else 0)
                yield row(rival, fault.status, reason=fault.reason, checks=fault.checks)
            else:
                calls[rival.name], found[rival.name] = passed
                kept[rival.name] = more
        times = compare(calls, clock=clock, budget_s=budget_s, failed=failed, **sampling)
        for rival in rivals:
            if rival.name in failed:
                others = sum(amount for name, amount in kept.items() if name != rival.name)
                fault = fault_of(failed.pop(rival.name)).beside(others)
                yield row(rival, fault.status, reason=fault.reason, **found[rival.name])
            elif rival.name in times:
                with running(rival.name):
                    joules = _energy(calls[rival.name], times[rival.name], clock) if energy else None
                yield row(rival, "ok", measurement=times[rival.name], energy=joules, **found[rival.name])
    except LostError as problem:
        for rival in rivals:
            if rival.name == problem.rival:
                ended: dict[str, Scalar] = {ENDED_SESSION: True}
                yield row(rival, "FAILED", figures=ended, reason=str(problem), **found.get(rival.name, {}))
        raise


def _energy(call: Call, timed: Measurement, clock: Clock) -> Energy | None:
    """Joules of a call, launched as it was timed; None where that cannot be known."""
    device = clock.device
    with tf32_products(device):
        try:
            return energy_of(captured(call, device, "it") if timed.clock == "cuda-graph" else call, device)
        except CannotRunError:  # a graph held it before, and no longer does
            return None
        except Exception:
            clock.check_device()
            raise


class Fault(NamedTuple):
    """Why a rival has no time."""

    status: Status
    reason: str
    checks: tuple[Check, ...] = ()

    def beside(self, kept: int) -> Fault:
        """The same, where rivals before it kept so many bytes: to be timed in turn, all are ready at once."""
        if self.status != "OOM" or not kept:
            return self
        return self._replace(reason=f"{self.reason}; rivals beside it kept {kept:,} bytes")


class _WrongError(Exception):
    """An implementation is not what it should be: some of these checks failed."""

    def __init__(self, checks: tuple[Check, ...]) -> None:
        super().__init__(checks)
        self.checks = checks


def _passed(rival: Rival, clock: Clock, attention: bool, company: Company) -> tuple[Call, dict[str, Any]] | Fault:
    """The rival's call and what is known of it, once it is right and has run. Every step is agreed upon before the
    next: whoever goes on alone would wait for the others in a step that they never come to."""
    device, agreed = clock.device, company.agreed
    checks: tuple[Check, ...] = ()
    try:
        agreed(partial(_refuse_too_large, rival.need_bytes, device, company.processes))
        checks = agreed(partial(_checked, rival))
        call = agreed(rival.prepare)
        agreed(call)  # compiles, tunes, fills pools
        unseen = rival.compiled and device.type == "cpu"
        memory = None if unseen else agreed(partial(peak_memory, call, device))
        kernels = agreed(partial(attention_kernels, call, device)) if attention else ()
        return call, {"checks": checks, "memory": memory, "kernels": kernels}
    except LostError:
        raise
    except Exception as problem:
        fault = fault_of(problem)
        fault = fault._replace(checks=fault.checks or checks)
    # outside, where the error is gone, and with it the frames that kept its tensors
    clock.check_device()
    if fault.status == "OOM":
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return fault


def _refuse_too_large(need_bytes: int | None, device: torch.device, processes: int) -> None:
    """Raise MemoryError for what so many processes cannot have at once. What a GPU has no room for does no harm."""
    if need_bytes is None:
        return
    if need_bytes >= ADDRESSABLE_BYTES:
        raise MemoryError("not tried: no machine addresses so much")
    free = free_bytes(device) if device.type == "cpu" else None
    if free is not None and need_bytes * processes > free:
        # Linux gives what it does not have, and ends the process that uses it
        shared = f" for {processes} processes" if processes > 1 else ""
        raise MemoryError(f"not tried: {free:,} bytes are free{shared}")


def _checked(rival: Rival) -> tuple[Check, ...]:
    """What its check found. Raises _WrongError where that is a fault."""
    if rival.check is None:
        return ()
    try:
        checks = tuple(Check.of(verdict) for verdict in rival.check())
    except Exception as problem:
        fault = fault_of(problem)
        if fault.status == "OOM":
            raise MemoryError(f"in its check, in fp64: {fault.reason}") from None
        raise
    if not all(check.passed for check in checks):
        raise _WrongError(checks)
    return checks


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


def fault_of(problem: Exception) -> Fault:
    """What an error means for a row, with the notes that were added to it."""
    notes = getattr(problem, "__notes__", ())
    if isinstance(problem, _WrongError):
        return Fault("INCORRECT", "; ".join((_faults(problem.checks), *notes)), problem.checks)
    text = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    text = "; ".join((text, *notes))
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(problem) for sign in NO_ROOM):
        return Fault("OOM", text)
    if isinstance(problem, (UnsupportedError, CannotRunError, NotImplementedError)):
        return Fault("n/a", text)
    return Fault("FAILED", f"{type(problem).__name__}: {text}")
