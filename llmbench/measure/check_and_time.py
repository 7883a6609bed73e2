"""Check several candidates, time the correct candidates together, and yield one row per candidate.

A row has one of these statuses:

- "ok": the result is correct, and the row has a time.
- "INCORRECT": the error of the result exceeds the error budget. The candidate is not timed.
- "OOM": the candidate ran out of memory. The row has the predicted memory.
- "n/a": the candidate is not available on this machine or for this shape. The row has the reason.
- "FAILED": the candidate raised another error.

After an error the other candidates go on, unless the GPU or another rank is lost. A row without a time is yielded at
once, so that the result file has the row even if the run is interrupted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from llmbench.errors import CannotRunError
from llmbench.kernels.proof.accuracy import Verdict, tf32_products
from llmbench.measure.clock import Call, Clock, DeviceLostError, attribute_loss, compare
from llmbench.measure.cuda import attention_kernels, captured
from llmbench.measure.energy import Energy, energy_of
from llmbench.measure.faults import Fault, IncorrectError, fault_of
from llmbench.measure.measurement import Measurement
from llmbench.measure.memory import peak_memory, reserved_bytes
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.measure.results import ENDED_SESSION, Check, Row, Scalar, Status
from llmbench.model.devices import free_bytes

__all__ = ["ADDRESSABLE_BYTES", "Candidate", "check_and_time"]

ADDRESSABLE_BYTES = 2**57
"""The number of bytes that an x86-64 CPU can address with five-level paging (57-bit addresses). In torch, sizes above
this limit can overflow."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One implementation that takes part in a comparison.

    `prepare()` creates the inputs and returns the call to time.
    `check()` compares a result with an fp64 reference and returns verdicts of `kernels.proof.accuracy`. The shapes of
        the check are small enough for the memory of the fp64 reference. None: there is nothing to check.
    `need_bytes`: the predicted memory of the inputs and the call, in bytes.
    `compiled`: whether torch.compile compiled a part of the call. On a CPU, the memory that compiled code allocates
        cannot be counted.

    The other fields are copied into the row.
    """

    name: str
    prepare: Callable[[], Call]
    check: Callable[[], Sequence[Verdict]] | None = None
    need_bytes: int | None = None
    work_flops: int | None = None
    work_bytes: int | None = None
    predicted_s: float | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)
    compiled: bool = False


def check_and_time(
    candidates: Sequence[Candidate],
    *,
    experiment: str,
    case: Mapping[str, Scalar],
    clock: Clock,
    ranks: Ranks = ALONE,
    budget_s: float = 1.0,
    energy: bool = False,
    attention: bool = False,
    **sampling: Any,
) -> Iterator[Row]:
    """Yield one row per candidate. The rows without a time come first.

    `budget_s`: the time for the samples of all candidates together, in seconds.
    `energy`: whether each candidate runs for one more second to read the GPU's energy counter.
    `attention`: whether the row has the names of the attention kernels that ran.
    `sampling`: further arguments of `clock.compare`.

    Raises DeviceLostError if the GPU or another rank is lost. Before that, the candidate that was running gets a row
    with the status "FAILED". Candidates that were not timed yet get no row.
    """

    def row(candidate: Candidate, status: Status, extra: Mapping[str, Scalar] | None = None, **fields: Any) -> Row:
        return Row(
            experiment=experiment,
            case=dict(case),
            implementation=candidate.name,
            status=status,
            need_bytes=candidate.need_bytes,
            work_flops=candidate.work_flops,
            work_bytes=candidate.work_bytes,
            predicted_s=candidate.predicted_s,
            extra={**candidate.extra, **(extra or {})},
            **fields,
        )

    calls: dict[str, Call] = {}
    checked: dict[str, dict[str, Any]] = {}
    holding: dict[str, int] = {}
    failed: dict[str, Exception] = {}
    try:
        for candidate in candidates:
            with tf32_products(clock.device), attribute_loss(candidate.name):
                before = reserved_bytes(clock.device)
                ready = _ready(candidate, clock, attention, ranks)
                grown = max(reserved_bytes(clock.device) - before, 0)
            if isinstance(ready, Fault):
                addressable = candidate.need_bytes is None or candidate.need_bytes < ADDRESSABLE_BYTES
                fault = ready.with_bytes_of_others(sum(holding.values()) if addressable else 0)
                yield row(candidate, fault.status, reason=fault.reason, checks=fault.checks)
            else:
                calls[candidate.name], checked[candidate.name] = ready
                holding[candidate.name] = grown
        times = compare(calls, clock=clock, budget_s=budget_s, failed=failed, **sampling)
        for candidate in candidates:
            if candidate.name in failed:
                others = sum(amount for name, amount in holding.items() if name != candidate.name)
                fault = fault_of(failed.pop(candidate.name)).with_bytes_of_others(others)
                yield row(candidate, fault.status, reason=fault.reason, **checked[candidate.name])
            elif candidate.name in times:
                with attribute_loss(candidate.name):
                    joules = _energy(calls[candidate.name], times[candidate.name], clock) if energy else None
                fields = checked[candidate.name]
                yield row(candidate, "ok", measurement=times[candidate.name], energy=joules, **fields)
    except DeviceLostError as problem:
        for candidate in candidates:
            if candidate.name == problem.candidate:
                ended: dict[str, Scalar] = {ENDED_SESSION: True}
                fields = checked.get(candidate.name, {})
                yield row(candidate, "FAILED", extra=ended, reason=str(problem), **fields)
        raise


def _energy(call: Call, timed: Measurement, clock: Clock) -> Energy | None:
    """Return the energy of a call, or None if it cannot be measured.

    If the call was timed as a CUDA graph, its energy is measured as a CUDA graph too.
    """
    device = clock.device
    with tf32_products(device):
        try:
            return energy_of(captured(call, device, "it") if timed.clock == "cuda-graph" else call, device)
        except CannotRunError:  # the call was captured once for timing, but a second capture failed
            return None
        except Exception:
            clock.check_device()
            raise


def _ready(candidate: Candidate, clock: Clock, attention: bool, ranks: Ranks) -> tuple[Call, dict[str, Any]] | Fault:
    """Check a candidate and run it once. Return the call and the fields of the row, or a Fault if a step failed.

    After each step, all ranks learn whether the step failed on any rank. Otherwise a rank could wait in the next step
    for a rank that has failed.
    """
    device, agreed = clock.device, ranks.agreed
    checks: tuple[Check, ...] = ()
    try:
        agreed(partial(_refuse_too_large, candidate.need_bytes, device, ranks.processes))
        checks = agreed(partial(_checked, candidate))
        call = agreed(candidate.prepare)
        agreed(call)  # the first call compiles and tunes kernels and fills memory pools
        uncounted = candidate.compiled and device.type == "cpu"
        memory = None if uncounted else agreed(partial(peak_memory, call, device))
        kernels = agreed(partial(attention_kernels, call, device)) if attention else ()
        return call, {"checks": checks, "memory": memory, "kernels": kernels}
    except DeviceLostError:
        raise
    except Exception as problem:
        fault = fault_of(problem)
        fault = fault._replace(checks=fault.checks or checks)
    # This code is outside the `except` block. Inside the block, the error's stack frames keep the call's tensors alive.
    clock.check_device()
    if fault.status == "OOM":
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return fault


def _refuse_too_large(need_bytes: int | None, device: torch.device, processes: int) -> None:
    """Raise MemoryError if `processes` processes cannot each allocate `need_bytes` bytes at the same time.

    A GPU's allocator raises an error that torch can handle, so the free memory is checked only on a CPU.
    """
    if need_bytes is None:
        return
    if need_bytes >= ADDRESSABLE_BYTES:
        raise MemoryError("not tried: the call needs more memory than any machine can address")
    free = free_bytes(device) if device.type == "cpu" else None
    if free is not None and need_bytes * processes > free:
        # Linux lets a process allocate more memory than is free, and kills the process when it uses the memory.
        shared = f" for {processes} processes" if processes > 1 else ""
        raise MemoryError(f"not tried: only {free:,} bytes are free{shared}")


def _checked(candidate: Candidate) -> tuple[Check, ...]:
    """Run the check of a candidate and return the checks of all tensors.

    Raises IncorrectError if the error of a tensor exceeds its error budget.
    """
    if candidate.check is None:
        return ()
    try:
        checks = tuple(Check.from_verdict(verdict) for verdict in candidate.check())
    except Exception as problem:
        fault = fault_of(problem)
        if fault.status == "OOM":
            raise MemoryError(f"in the fp64 check: {fault.reason}") from None
        raise
    if not all(check.passed for check in checks):
        raise IncorrectError(checks)
    return checks
