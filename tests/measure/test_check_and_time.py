"""Faults that are planted on purpose become rows, and nothing ends a sweep but the user."""

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
from llmbench.measure.results import Row, Store, read
from tests.measure.rows import header

CLOCK = CpuClock(threads=1, sample_s=1e-4)
QUICK: dict[str, Any] = {"budget_s": 0.0, "warmup_s": 0.0, "min_samples": 2}
X = torch.randn(2, 3, 64, 16, generator=torch.Generator().manual_seed(0))


def standard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The reference."""
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own."""
    return F.scaled_dot_product_attention(q, k, v)


def rival(name: str, function: Callable[..., Tensor], **more: Any) -> Candidate:
    """An implementation, held against the reference, gradients too."""
    inputs = {"q": X, "k": X.flip(2), "v": X.flip(3)}
    return Candidate(
        name=name,
        prepare=lambda: lambda: function(**inputs),
        check=lambda: check_against(function, standard, inputs, differentiable=("q", "k", "v")),
        **more,
    )


def raising(problem: Exception) -> Callable[[], Any]:
    """What cannot be prepared."""

    def prepare() -> Any:
        raise problem

    return prepare


def rows(*rivals: Candidate, **more: Any) -> dict[str, Row]:
    """Rows of a comparison by implementation."""
    given: dict[str, Any] = {"experiment": "attention", "case": {"seq": 64}, "clock": CLOCK}
    return {row.implementation: row for row in check_and_time(rivals, **(given | QUICK | more))}


def test_what_is_right_has_a_time() -> None:
    torchs = rival("sdpa", sdpa, work_flops=100, predicted_s=1.0, extra={"heads": 3})
    found = rows(rival("standard", standard), torchs, attention=True)
    assert [(row.status, row.reason) for row in found.values()] == [("ok", None)] * 2
    row = found["sdpa"]
    assert [check.tensor for check in row.checks] == ["out", "dq", "dk", "dv"]
    assert (row.experiment, row.case, row.work_flops, row.predicted_s) == ("attention", {"seq": 64}, 100, 1.0)
    assert row.extra == {"heads": 3}
    assert row.kernels == ("aten::_scaled_dot_product_flash_attention_for_cpu",)
    assert found["standard"].kernels == ()
    assert row.measurement is not None
    assert row.measurement.n == 2
    assert row.memory is not None
    assert found["standard"].memory is not None
    assert row.memory.added_bytes < found["standard"].memory.added_bytes  # no S×S matrix


def wrong_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel that forgets the last key."""
    return standard(q, k[..., :-1, :], v[..., :-1, :])


def unwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel that leaves an element unwritten."""
    out = standard(q, k, v).clone()
    out[0, 0, 5, 3] = float("nan")
    return out


def wrong_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Right forward, without the gradient through k."""
    return standard(q, k.detach(), v) + 0 * k.sum()


@pytest.mark.parametrize(
    ("kernel", "tensor"), [(wrong_mask, "out"), (unwritten, "out: error not a number"), (wrong_gradient, "dk")]
)
def test_a_wrong_kernel_has_no_time(kernel: Callable[..., Tensor], tensor: str) -> None:
    timed = []

    def counted(**inputs: Tensor) -> Tensor:
        timed.append(1)
        return kernel(**inputs)

    found = rows(rival("standard", standard), rival("wrong", counted))
    assert (found["wrong"].status, found["wrong"].measurement) == ("INCORRECT", None)
    assert tensor in (found["wrong"].reason or "")
    assert not all(check.passed for check in found["wrong"].checks)
    assert len(timed) == 1  # the check's
    assert found["standard"].status == "ok"


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
def test_what_cannot_run_is_a_row(problem: Exception, status: str, reason: str) -> None:
    bad = Candidate(name="bad", prepare=raising(problem), need_bytes=123)
    at_call = Candidate(name="at call", prepare=lambda: raising(problem), need_bytes=456)
    found = rows(bad, at_call, rival("standard", standard))
    for name, need in (("bad", 123), ("at call", 456)):
        assert (found[name].status, found[name].need_bytes) == (status, need)
        assert reason in (found[name].reason or "")
    assert found["standard"].status == "ok"


def test_a_real_allocation_that_fails() -> None:
    found = rows(Candidate(name="vast", prepare=lambda: lambda: torch.empty(2**52), need_bytes=None))
    assert found["vast"].status == "OOM"
    assert "allocate memory" in (found["vast"].reason or "")


def test_what_has_no_room_for_its_check_says_so() -> None:
    def check() -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    found = rows(Candidate(name="wide", prepare=raising(AssertionError()), check=check, need_bytes=123))
    assert (found["wide"].status, found["wide"].reason) == ("OOM", "in the fp64 check: Tried to allocate 20 GiB")


def test_a_reason_names_the_first_of_many_faults() -> None:
    def wrong(**inputs: Tensor) -> Tensor:
        return 2 * standard(**inputs)

    assert (rows(rival("wrong", wrong))["wrong"].reason or "").endswith("; 1 more of 4 tensors")


def test_joules_are_of_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph where that was timed, else the call."""
    monkeypatch.setattr(module, "captured", lambda call, device, name: f"graph of {call}")
    monkeypatch.setattr(module, "energy_of", lambda call, device: call)
    for kind, launched in (("cuda-graph", "graph of it"), ("cuda-events", "it")):
        timed = Measurement(samples_s=(1.0,), clock=kind)  # type: ignore[arg-type]
        assert module._energy("it", timed, CLOCK) == launched  # type: ignore[arg-type,comparison-overlap]


def test_what_a_cpu_has_no_room_for_is_not_tried() -> None:
    """Linux would let it begin, and end the process later."""
    found = rows(Candidate(name="vast", prepare=raising(AssertionError()), need_bytes=2**60))
    assert found["vast"].status == "OOM"
    assert (found["vast"].reason or "").startswith("not tried: ")


class Pair:
    """Two processes of one machine; what this one does the other does too, up to a point."""

    processes = 2

    def __init__(self, broken: int | None = None) -> None:
        self.steps, self.broken = 0, broken

    def agreed(self, action: Callable[[], Any]) -> Any:
        """What it does here, if the other can."""
        found = action()
        self.steps += 1
        if self.steps == self.broken:
            raise RuntimeError("the other failed")
        return found


def test_what_processes_need_together_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1500)
    fits = Candidate(name="fits", prepare=lambda: lambda: None, need_bytes=1000)
    assert rows(fits)["fits"].status == "ok"
    row = rows(fits, ranks=Pair())["fits"]
    assert (row.status, row.reason) == ("OOM", "not tried: only 1,500 bytes are free for 2 processes")


@pytest.mark.parametrize("step", range(1, 7))
def test_no_step_is_gone_on_from_alone(step: int) -> None:
    """Room, check, prepare, call, memory, kernels."""
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
    row = rows(one, ranks=Pair(step), attention=True)["one"]
    assert (row.status, row.reason) == ("FAILED", "RuntimeError: the other failed")
    assert done == ["check", "prepare", "call", "call", "call"][: step - 1]


def test_out_of_memory_beside_others_says_what_they_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"bytes": 100}
    monkeypatch.setattr(module, "reserved_bytes", lambda device: held["bytes"])
    no_room = torch.OutOfMemoryError("Tried to allocate 20 GiB")
    calls = iter(range(100))

    def keeping(amount: int, call: Callable[[], Any] = lambda: None) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            held["bytes"] += amount
            return call

        return prepare

    def full_at_last() -> None:
        if next(calls) == 2:
            raise no_room

    found = rows(
        Candidate(name="first", prepare=raising(no_room)),
        Candidate(name="a", prepare=keeping(3000)),
        Candidate(name="b", prepare=keeping(4000, full_at_last)),
        Candidate(name="vast", prepare=raising(no_room)),
        Candidate(name="odd", prepare=raising(ValueError("odd"))),
    )
    assert {name: row.reason for name, row in found.items()} == {
        "first": "Tried to allocate 20 GiB",
        "a": None,
        "b": "Tried to allocate 20 GiB (other candidates were holding 3,000 bytes)",
        "vast": "Tried to allocate 20 GiB (other candidates were holding 7,000 bytes)",
        "odd": "ValueError: odd",
    }


def test_what_a_rival_leaves_that_had_no_room_is_not_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor beside the next: what is beside a rival is ready to be timed."""
    held = {"bytes": 100}
    monkeypatch.setattr(module, "reserved_bytes", lambda device: held["bytes"])

    def leaving() -> Callable[[], Any]:
        held["bytes"] += 5000
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    found = rows(Candidate(name="a", prepare=leaving), Candidate(name="b", prepare=leaving))
    assert [row.reason for row in found.values()] == ["Tried to allocate 20 GiB"] * 2


def test_failing_at_last_is_a_row_too() -> None:
    """Right, and right once more, and then no more."""
    calls = iter(range(100))

    def tires(**inputs: Tensor) -> Tensor:
        if next(calls) == 5:
            raise RuntimeError("tired")
        return standard(**inputs)

    found = rows(rival("tires", tires), rival("standard", standard), min_samples=10)
    assert (found["tires"].status, found["tires"].reason) == ("FAILED", "RuntimeError: tired")
    assert found["standard"].measurement is not None
    assert found["standard"].measurement.n == 10


def test_what_nothing_counts_is_not_known() -> None:
    """Memory of compiled code on a CPU: torch's dispatcher sees none of it."""
    found = rows(
        Candidate(name="plain", prepare=lambda: lambda: torch.ones(1000)),
        Candidate(name="compiled", prepare=lambda: lambda: torch.ones(1000), compiled=True),
    )
    assert found["plain"].memory is not None
    assert (found["compiled"].status, found["compiled"].memory) == ("ok", None)


def test_a_failure_keeps_no_memory() -> None:
    """The frames of the failed call go, and with them its tensors."""
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


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """Rows of earlier cases, and those of this one that need no time."""

    def stopped() -> Any:
        raise KeyboardInterrupt

    path = tmp_path / "r.jsonl"
    interrupted = [
        rival("wrong", wrong_mask),
        rival("standard", standard),
        Candidate(name="x", prepare=lambda: stopped),
    ]

    def sweep() -> None:
        with Store(path, header()) as store:
            for seq, rivals in ((1, [rival("standard", standard)]), (2, interrupted)):
                for row in check_and_time(rivals, experiment="attention", case={"seq": seq}, clock=CLOCK, **QUICK):
                    store.write([row])

    with pytest.raises(KeyboardInterrupt):
        sweep()
    found = [(row.case["seq"], row.implementation, row.status) for row in read(path).rows]
    assert found == [(1, "standard", "ok"), (2, "wrong", "INCORRECT")]


def test_no_triton_is_needed() -> None:
    """SDPA and plain torch are measured on a machine without it; torch itself asks for it in vain."""
    code = """
import sys
sys.modules["triton"] = None
from llmbench.measure import check_and_time, difference, reference
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_a_gpu_without_room_goes_on() -> None:
    from llmbench.measure.clock import clock_for

    device = torch.device("cuda")
    x = torch.randn(1024, 1024, device=device)
    vast = Candidate(name="vast", prepare=lambda: lambda: torch.empty(2**45, device=device), need_bytes=2**47)
    found = rows(vast, Candidate(name="fine", prepare=lambda: lambda: x @ x), clock=clock_for(device), energy=True)
    assert (found["vast"].status, found["fine"].status) == ("OOM", "ok")
