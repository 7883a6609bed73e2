"""The machine of a run, with its time limits and sizes. It is a GPU, or a CPU on which the run is rehearsed."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.rehearsal import WallClockCuda
from llmbench.bench.extra_candidates import compiled, forget_compiled
from llmbench.errors import CannotRunError
from llmbench.measure.clock import Clock, CudaClock
from llmbench.measure.cuda import attention_kernels
from llmbench.measure.reference import GPU, Sizes

__all__ = ["Deadline", "Machine", "OutOfTimeError", "open_gpu", "open_rehearsal", "slug", "time_box"]


class OutOfTimeError(CannotRunError):
    """The error for a block of code that took longer than its time limit."""


@contextmanager
def time_box(seconds: float, what: str) -> Iterator[None]:
    """Raise OutOfTimeError if the `with` block takes longer than `seconds`. The error interrupts Python code, such as a
    compiler. It does not interrupt a kernel that hangs."""
    # Only the main thread gets signals, so other threads have no time limit.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: Any) -> None:
        raise OutOfTimeError(f"{what} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Deadline:
    """The time limit of a run: `seconds` after this object is created."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """The seconds until the time limit. After the time limit, the value is negative."""
        return self.at - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A GPU, or a CPU on which a GPU run is rehearsed.

    - `sampling`: keyword arguments for `measure.clock.compare`.
    - `seeds`: the number of random inputs with which each candidate is checked.
    - `candidate_s`: the time limit, in seconds, for the check of one candidate and for its preparation.
    - `compiler`: the backend of torch.compile.
    - `sizes`: the sizes of the reference measurements.
    - `names_kernels`: whether the profiler can name the kernels that ran.
    """

    name: str
    device: torch.device
    clock: Clock
    rehearsal: bool
    sampling: dict[str, Any]
    seeds: int
    candidate_s: float
    compiler: str
    sizes: Sizes
    dtype: torch.dtype = torch.bfloat16
    names_kernels: bool = True
    notes: list[str] = field(default_factory=list)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `function` as one graph for fixed shapes."""
        return compiled(function, backend=self.compiler, fullgraph=True)

    def forget(self) -> None:
        """Free the memory and the compiled code of an experiment."""
        forget_compiled()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def open_gpu() -> Iterator[Machine]:
    """Yield the current GPU. Raises CannotRunError if there is no GPU.

    Everything runs on a separate stream, because a CUDA graph cannot capture work on the default stream. A backward
    pass runs on the stream of its forward pass, so the forward pass must run on the separate stream too.
    """
    if not torch.cuda.is_available():
        raise CannotRunError("no CUDA GPU here", hint="--quick rehearses on a CPU, without meaningful times")
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.stream(torch.cuda.Stream(device)), _settings():
        names, notes = _names_kernels(device)
        yield Machine(
            name=torch.cuda.get_device_name(device),
            device=device,
            clock=CudaClock(device),
            rehearsal=False,
            sampling={"budget_s": 1.5, "warmup_s": 0.05, "min_samples": 10, "max_samples": 100},
            seeds=3,
            candidate_s=40.0,
            compiler="inductor",
            sizes=GPU,
            names_kernels=names,
            notes=notes,
        )


@contextmanager
def open_rehearsal() -> Iterator[Machine]:
    """Yield a CPU in place of a GPU. The kernels run in Triton's interpreter, torch.compile generates no code, and
    `CudaClock` reads a wall clock instead of CUDA events."""
    device = torch.device("cpu")
    with _settings():
        yield Machine(
            name="rehearsal",
            device=device,
            clock=CudaClock(device, cuda=WallClockCuda()),
            rehearsal=True,
            sampling={"budget_s": 0.0, "warmup_s": 0.0, "min_samples": 2},
            seeds=1,
            candidate_s=20.0,
            compiler="aot_eager",
            sizes=Sizes(matmul=64, bytes=2**12, launches=10),
        )


@contextmanager
def _settings() -> Iterator[None]:
    """For the whole run, set the precision of fp32 matrix products that the checks use. If the checks changed this
    setting later, torch.compile would compile everything again."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _names_kernels(device: torch.device) -> tuple[bool, list[str]]:
    """Return whether the profiler can name kernels on this machine. If it cannot, also return a note, and the rows have
    no kernel names."""
    x = torch.randn(1, 1, 128, 64, device=device, dtype=torch.bfloat16)
    try:
        names = attention_kernels(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x), device)
    except Exception as problem:  # If a machine forbids profiling, CUPTI raises errors of many types.
        return False, [f"no kernel names: the profiler does not run on this machine ({type(problem).__name__})"]
    return bool(names), [] if names else ["no kernel names: the profiler reports no kernels on this machine"]


def slug(name: str) -> str:
    """Return a device name in the form for file names, such as nvidia-h200 for NVIDIA H200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
