"""The machine of a run, with its time limits and sizes. It is a GPU, or a CPU on which the run is rehearsed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.rehearsal import WallClockCuda
from llmbench.bench.extra_candidates.compiled import compiled, forget_compiled
from llmbench.errors import CannotRunError
from llmbench.measure.clock import Clock, CudaClock
from llmbench.measure.cuda import attention_kernels
from llmbench.measure.reference import GPU, Sizes

__all__ = [
    "FIRST",
    "FULL",
    "Deadline",
    "Machine",
    "OutOfTimeError",
    "Pace",
    "open_gpu",
    "open_rehearsal",
    "slug",
    "time_box",
]


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
    """The time limit of a run: `seconds` after the run started.

    The shell script that starts a run sets the environment variable GPU_CHECK_STARTED, so that the time of the imports
    counts too. Without it, the run starts when this object is created.
    """

    def __init__(self, seconds: float) -> None:
        started = float(os.environ.get("GPU_CHECK_STARTED") or time.time())
        self.at = time.monotonic() + seconds - (time.time() - started)

    @property
    def left_s(self) -> float:
        """The seconds until the time limit. After the time limit, the value is negative."""
        return self.at - time.monotonic()


class Pace(NamedTuple):
    """The time limits of a run, in seconds, and the number of seeds.

    - `total_s`: the whole run. `compile_s`: the compilation before anything is timed.
    - `family_s`: all child processes of one family of experiments in one step.
    - `stall_s`: a child process without progress is killed after this time. Progress is a row, or the next candidate.
    - `candidate_s`: the check of one candidate, and its preparation.
    - `samples_s`: the samples of all candidates of a case together.
    - `least_s`: the least time that must be left before a family begins.
    - `seeds`: the number of random inputs with which each candidate is checked.
    """

    total_s: float
    compile_s: float
    family_s: float
    stall_s: float
    candidate_s: float
    samples_s: float
    least_s: float = 6.0
    seeds: int = 3


FULL = Pace(520.0, 130.0, 520.0, 60.0, 40.0, 1.5, least_s=10.0)
FIRST = Pace(270.0, 50.0, 40.0, 20.0, 15.0, 0.8)


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
def open_gpu(pace: Pace = FULL, names_kernels: bool | None = None) -> Iterator[Machine]:
    """Yield the current GPU. Raises CannotRunError if there is no GPU. `names_kernels`: whether the profiler can name
    kernels on this machine; None: try.

    Everything runs on a separate stream, because a CUDA graph cannot capture work on the default stream. A backward
    pass runs on the stream of its forward pass, so the forward pass must run on the separate stream too.
    """
    if not torch.cuda.is_available():
        raise CannotRunError("no CUDA GPU here", hint="--quick rehearses on a CPU, without meaningful times")
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.stream(torch.cuda.Stream(device)), _settings():
        names, notes = _names_kernels(device) if names_kernels is None else (names_kernels, [])
        yield Machine(
            name=torch.cuda.get_device_name(device),
            device=device,
            clock=CudaClock(device),
            rehearsal=False,
            sampling={"budget_s": pace.samples_s, "warmup_s": 0.05, "min_samples": 10, "max_samples": 100},
            seeds=pace.seeds,
            candidate_s=pace.candidate_s,
            compiler="inductor",
            sizes=GPU,
            names_kernels=names,
            notes=notes,
        )


@contextmanager
def open_rehearsal(pace: Pace = FULL, names_kernels: bool | None = None) -> Iterator[Machine]:
    """Yield a CPU in place of a GPU. The kernels run in Triton's interpreter, torch.compile generates no code, and
    `CudaClock` reads a wall clock instead of CUDA events."""
    device = torch.device("cpu")
    # A fork of a process whose threads have computed can hang if it computes with several threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _settings():
            yield Machine(
                name="rehearsal",
                device=device,
                clock=CudaClock(device, cuda=WallClockCuda()),
                rehearsal=True,
                sampling={"budget_s": 0.0, "warmup_s": 0.0, "min_samples": 2},
                seeds=1,
                candidate_s=pace.candidate_s,
                compiler="aot_eager",
                sizes=Sizes(matmul=64, bytes=2**12, launches=10),
                names_kernels=names_kernels is not False,
            )
    finally:
        torch.set_num_threads(threads)


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
