"""Planted faults become rows, and only the user ends a sweep."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.kernels.proof.accuracy import check_against
from llmbench.measure import check_and_time as module
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.clock import CpuClock
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Row, read
from llmbench.measure.store import Store
from tests.measure.rows import header

CLOCK = CpuClock(threads=1, sample_s=1e-4)
QUICK: dict[str, Any] = {"budget_s": 0.0, "warmup_s": 0.0, "min_samples": 2}
X = torch.randn(2, 3, 64, 16, generator=torch.Generator().manual_seed(0))


def standard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The reference implementation."""
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention."""
    return F.scaled_dot_product_attention(q, k, v)


def candidate(name: str, function: Callable[..., Tensor], **more: Any) -> Candidate:
    """A candidate whose results and gradients are checked against the reference."""
    inputs = {"q": X, "k": X.flip(2), "v": X.flip(3)}
    return Candidate(
        name=name,
        prepare=lambda: lambda: function(**inputs),
        check=lambda: check_against(function, standard, inputs, differentiable=("q", "k", "v")),
        **more,
    )


def raising(problem: Exception) -> Callable[[], Any]:
    """Return a function that raises `problem`."""

    def prepare() -> Any:
        raise problem

    return prepare


def rows(*candidates: Candidate, **more: Any) -> dict[str, Row]:
    """Check and time the candidates; return their rows by implementation."""
    options: dict[str, Any] = {"experiment": "attention", "case": {"seq": 64}, "clock": CLOCK}
    return {row.implementation: row for row in check_and_time(candidates, **(options | QUICK | more))}


def test_a_correct_candidate_has_a_time() -> None:
    sdpa_candidate = candidate("sdpa", sdpa, work_flops=100, predicted_s=1.0, extra={"heads": 3})
    by_name = rows(candidate("standard", standard), sdpa_candidate, attention=True)
    assert [(row.status, row.reason) for row in by_name.values()] == [("ok", None)] * 2
    row = by_name["sdpa"]
    assert [check.tensor for check in row.checks] == ["out", "dq", "dk", "dv"]
    assert (row.experiment, row.case, row.work_flops, row.predicted_s) == ("attention", {"seq": 64}, 100, 1.0)
    assert row.extra == {"heads": 3}
    assert row.kernels == ("aten::_scaled_dot_product_flash_attention_for_cpu",)
    assert by_name["standard"].kernels == ()
    assert row.measurement is not None
    assert row.measurement.n == 2
    assert row.memory is not None
    assert by_name["standard"].memory is not None
    assert row.memory.added_bytes < by_name["standard"].memory.added_bytes  # no S×S matrix


def wrong_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel that ignores the last key."""
    return standard(q, k[..., :-1, :], v[..., :-1, :])


def unwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel that leaves an element unwritten."""
    out = standard(q, k, v).clone()
    out[0, 0, 5, 3] = float("nan")
    return out


def wrong_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel with a correct forward pass and no gradient for k."""
    return standard(q, k.detach(), v) + 0 * k.sum()


@pytest.mark.parametrize(
    ("kernel", "tensor"), [(wrong_mask, "out"), (unwritten, "out: error not a number"), (wrong_gradient, "dk")]
)
def test_an_incorrect_kernel_has_no_time(kernel: Callable[..., Tensor], tensor: str) -> None:
    timed = []

    def counted(**inputs: Tensor) -> Tensor:
        timed.append(1)
        return kernel(**inputs)

    by_name = rows(candidate("standard", standard), candidate("wrong", counted))
    assert (by_name["wrong"].status, by_name["wrong"].measurement) == ("INCORRECT", None)
    assert tensor in (by_name["wrong"].reason or "")
    assert not all(check.passed for check in by_name["wrong"].checks)
    assert len(timed) == 1  # by the check
    assert by_name["standard"].status == "ok"


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    ("problem", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "OOM", "Tried to allocate 20 GiB"),
        (MemoryError(), "OOM", "MemoryError"),
        (RuntimeError(CUBLAS), "OOM", "CUBLAS_STATUS_ALLOC_FAILED"),
        (UnsupportedError("no window in SDPA"), "n/a", "no window in SDPA"),
        (CannotRunError("needs a GPU"), "n/a", "needs a GPU"),
        (NotImplementedError("not for fp32"), "n/a", "not for fp32"),
        (RuntimeError("\n  illegal instruction\nmore"), "FAILED", "RuntimeError: illegal instruction"),
        (ZeroDivisionError("division by zero"), "FAILED", "ZeroDivisionError: division by zero"),
    ],
)
def test_every_error_becomes_a_row(problem: Exception, status: str, reason: str) -> None:
    bad = Candidate(name="bad", prepare=raising(problem), need_bytes=123)
    at_call = Candidate(name="at call", prepare=lambda: raising(problem), need_bytes=456)
    by_name = rows(bad, at_call, candidate("standard", standard))
    for name, need in (("bad", 123), ("at call", 456)):
        assert (by_name[name].status, by_name[name].need_bytes) == (status, need)
        assert reason in (by_name[name].reason or "")
    assert by_name["standard"].status == "ok"


def test_a_real_allocation_failure_is_oom() -> None:
    by_name = rows(Candidate(name="vast", prepare=lambda: lambda: torch.empty(2**52), need_bytes=None))
    assert by_name["vast"].status == "OOM"
    assert "allocate memory" in (by_name["vast"].reason or "")


def test_out_of_memory_in_the_check_says_so() -> None:
    def check() -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    by_name = rows(Candidate(name="wide", prepare=raising(AssertionError()), check=check, need_bytes=123))
    assert (by_name["wide"].status, by_name["wide"].reason) == ("OOM", "in the fp64 check: Tried to allocate 20 GiB")


def test_the_reason_names_the_first_of_many_failed_checks() -> None:
    def wrong(**inputs: Tensor) -> Tensor:
        return 2 * standard(**inputs)

    assert (rows(candidate("wrong", wrong))["wrong"].reason or "").endswith("; 1 more of 4 tensors")


def test_energy_is_measured_as_the_call_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CUDA graph if a graph was timed, else with the call."""
    monkeypatch.setattr(module, "captured", lambda call, device, name: f"graph of {call}")
    monkeypatch.setattr(module, "energy_of", lambda call, device: call)
    for kind, launched in (("cuda-graph", "graph of it"), ("cuda-events", "it")):
        timed = Measurement(samples_s=(1.0,), clock=kind)  # type: ignore[arg-type]
        assert module._energy("it", timed, CLOCK) == launched  # type: ignore[arg-type,comparison-overlap]


def test_a_candidate_larger_than_cpu_memory_is_not_tried() -> None:
    """Linux would let it start and end the process later."""
    by_name = rows(Candidate(name="vast", prepare=raising(AssertionError()), need_bytes=2**60))
    assert by_name["vast"].status == "OOM"
    assert (by_name["vast"].reason or "").startswith("not tried: ")


class TwoRanks:
    """This process and a simulated second rank on one machine, which fails at step `broken`."""

    processes = 2

    def __init__(self, broken: int | None = None) -> None:
        self.steps, self.broken = 0, broken

    def agreed(self, action: Callable[[], Any]) -> Any:
        """Run `action` here; raise if the other rank fails."""
        result = action()
        self.steps += 1
        if self.steps == self.broken:
            raise RuntimeError("the other failed")
        return result


def test_the_processes_of_a_machine_must_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1500)
    fits = Candidate(name="fits", prepare=lambda: lambda: None, need_bytes=1000)
    assert rows(fits)["fits"].status == "ok"
    row = rows(fits, ranks=TwoRanks())["fits"]
    assert (row.status, row.reason) == ("OOM", "not tried: only 1,500 bytes are free for 2 processes")


@pytest.mark.parametrize("step", range(1, 7))
def test_no_rank_goes_on_alone_after_a_failed_step(step: int) -> None:
    """The steps are: size, check, prepare, call, memory, kernels."""
    done: list[str] = []

    def call() -> None:
        done.append("call")

    def prepare() -> Callable[[], None]:
        done.append("prepare")
        return call

    def check() -> list[Any]:
        done.append("check")
        return []

    one = Candidate(name="one", prepare=prepare, check=check)
    row = rows(one, ranks=TwoRanks(step), attention=True)["one"]
    assert (row.status, row.reason) == ("FAILED", "RuntimeError: the other failed")
    assert done == ["check", "prepare", "call", "call", "call"][: step - 1]


def test_out_of_memory_says_how_much_other_candidates_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = {"bytes": 100}
    monkeypatch.setattr(module, "reserved_bytes", lambda device: reserved["bytes"])
    out_of_memory = torch.OutOfMemoryError("Tried to allocate 20 GiB")
    calls = iter(range(100))

    def holding(amount: int, call: Callable[[], Any] = lambda: None) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            reserved["bytes"] += amount
            return call

        return prepare

    def fails_when_timed() -> None:
        if next(calls) == 2:
            raise out_of_memory

    by_name = rows(
        Candidate(name="first", prepare=raising(out_of_memory)),
        Candidate(name="a", prepare=holding(3000)),
        Candidate(name="b", prepare=holding(4000, fails_when_timed)),
        Candidate(name="vast", prepare=raising(out_of_memory)),
        Candidate(name="odd", prepare=raising(ValueError("odd"))),
    )
    assert {name: row.reason for name, row in by_name.items()} == {
        "first": "Tried to allocate 20 GiB",
        "a": None,
        "b": "Tried to allocate 20 GiB (other candidates were using 3,000 bytes)",
        "vast": "Tried to allocate 20 GiB (other candidates were using 7,000 bytes)",
        "odd": "ValueError: odd",
    }


def test_memory_left_by_a_failed_candidate_does_not_count_as_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for itself nor for the next one: only the memory of candidates that are ready to be timed counts."""
    reserved = {"bytes": 100}
    monkeypatch.setattr(module, "reserved_bytes", lambda device: reserved["bytes"])

    def leaving() -> Callable[[], Any]:
        reserved["bytes"] += 5000
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    by_name = rows(Candidate(name="a", prepare=leaving), Candidate(name="b", prepare=leaving))
    assert [row.reason for row in by_name.values()] == ["Tried to allocate 20 GiB"] * 2


def test_a_candidate_that_fails_while_timed_is_a_row() -> None:
    """It passes its check and fails later."""
    calls = iter(range(100))

    def fails_late(**inputs: Tensor) -> Tensor:
        if next(calls) == 5:
            raise RuntimeError("tired")
        return standard(**inputs)

    by_name = rows(candidate("late", fails_late), candidate("standard", standard), min_samples=10)
    assert (by_name["late"].status, by_name["late"].reason) == ("FAILED", "RuntimeError: tired")
    assert by_name["standard"].measurement is not None
    assert by_name["standard"].measurement.n == 10


def test_memory_of_compiled_code_is_unknown_on_a_cpu() -> None:
    """torch's dispatcher sees none of its allocations."""
    by_name = rows(
        Candidate(name="plain", prepare=lambda: lambda: torch.ones(1000)),
        Candidate(name="compiled", prepare=lambda: lambda: torch.ones(1000), compiled=True),
    )
    assert by_name["plain"].memory is not None
    assert (by_name["compiled"].status, by_name["compiled"].memory) == ("ok", None)


def test_a_failed_call_keeps_no_memory() -> None:
    """Its frames are freed, and with them its tensors."""
    alive: list[weakref.ref[Tensor]] = []

    def fails() -> None:
        tensor = torch.randn(10)
        alive.append(weakref.ref(tensor))
        raise MemoryError

    seen = []
    for row in check_and_time(
        [Candidate(name="bad", prepare=lambda: fails)], experiment="x", case={}, clock=CLOCK, **QUICK
    ):
        gc.collect()
        seen.append((row.status, alive[0]()))
    assert seen == [("OOM", None)]


def test_ctrl_c_keeps_the_measured_rows(tmp_path: Path) -> None:
    """The rows of earlier cases, and the rows of this case without a time."""

    def interrupt() -> Any:
        raise KeyboardInterrupt

    path = tmp_path / "r.jsonl"
    interrupted = [
        candidate("wrong", wrong_mask),
        candidate("standard", standard),
        Candidate(name="x", prepare=lambda: interrupt),
    ]

    def sweep() -> None:
        with Store(path, header()) as store:
            for seq, candidates in ((1, [candidate("standard", standard)]), (2, interrupted)):
                for row in check_and_time(candidates, experiment="attention", case={"seq": seq}, clock=CLOCK, **QUICK):
                    store.write([row])

    with pytest.raises(KeyboardInterrupt):
        sweep()
    measured = [(row.case["seq"], row.implementation, row.status) for row in read(path).rows]
    assert measured == [(1, "standard", "ok"), (2, "wrong", "INCORRECT")]


def test_triton_is_not_needed() -> None:
    """SDPA and plain torch are measured on a machine without it; torch tries to import it and goes on."""
    code = """
import sys
sys.modules["triton"] = None
from llmbench.measure import check_and_time, reference, regressions
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_a_gpu_goes_on_after_out_of_memory() -> None:
    from llmbench.measure.clock import clock_for

    device = torch.device("cuda")
    x = torch.randn(1024, 1024, device=device)
    vast = Candidate(name="vast", prepare=lambda: lambda: torch.empty(2**45, device=device), need_bytes=2**47)
    by_name = rows(vast, Candidate(name="fine", prepare=lambda: lambda: x @ x), clock=clock_for(device), energy=True)
    assert (by_name["vast"].status, by_name["fine"].status) == ("OOM", "ok")
