"""Where a run happens: a GPU, or the rehearsal of one on a CPU, and what each can do in the time there is."""

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
from llmbench.bench.baselines import compiled, forget_compiled
from llmbench.errors import CannotRunError
from llmbench.measure.clock import Clock, CudaClock
from llmbench.measure.cuda import attention_kernels
from llmbench.measure.reference import GPU, Sizes

__all__ = ["Deadline", "Machine", "OutOfTimeError", "a_gpu", "a_rehearsal", "slug", "time_box"]


class OutOfTimeError(CannotRunError):
    """A call that was still not done when its time was up."""


@contextmanager
def time_box(seconds: float, what: str) -> Iterator[None]:
    """Raise OutOfTimeError in the block once `seconds` have gone. Python must be running to see it: between the
    instructions of a compiler, not inside a kernel."""
    if threading.current_thread() is not threading.main_thread():  # no signals elsewhere
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTimeError(f"{what} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Deadline:
    """The end of a run, `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then, negative afterwards."""
        return self.at - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`sampling` are the arguments of `clock.compare`; `seeds` the random inputs of a gate; `rival_s` how long one
    contender may take until it is ready; `compiler` the backend of torch.compile; `sizes` those of the reference
    measurements."""

    name: str
    device: torch.device
    clock: Clock
    rehearsal: bool
    sampling: dict[str, Any]
    seeds: int
    rival_s: float
    compiler: str
    sizes: Sizes
    dtype: torch.dtype = torch.bfloat16
    names_kernels: bool = True
    notes: list[str] = field(default_factory=list)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` by torch.compile, for these shapes and whole."""
        return compiled(function, backend=self.compiler, fullgraph=True)

    def forget(self) -> None:
        """Give back what an experiment held, compiled code too."""
        forget_compiled()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def a_gpu() -> Iterator[Machine]:
    """The current GPU. Everything runs on a stream of its own: a backward pass runs on the stream of its forward pass,
    and no graph captures what runs on the default stream. Raises CannotRunError where there is no GPU."""
    if not torch.cuda.is_available():
        raise CannotRunError("no CUDA GPU here", hint="--quick rehearses on a CPU, without times that mean anything")
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
            rival_s=40.0,
            compiler="inductor",
            sizes=GPU,
            names_kernels=names,
            notes=notes,
        )


@contextmanager
def a_rehearsal() -> Iterator[Machine]:
    """A CPU that stands for a GPU: kernels run in Triton's interpreter, torch.compile without code generation, and the
    GPU's clock with a wall clock for its events."""
    device = torch.device("cpu")
    with _settings():
        yield Machine(
            name="rehearsal",
            device=device,
            clock=CudaClock(device, cuda=WallClockCuda()),
            rehearsal=True,
            sampling={"budget_s": 0.0, "warmup_s": 0.0, "min_samples": 2},
            seeds=1,
            rival_s=20.0,
            compiler="aot_eager",
            sizes=Sizes(matmul=64, bytes=2**12, launches=10),
        )


@contextmanager
def _settings() -> Iterator[None]:
    """fp32 products as the gate makes them, throughout: torch.compile would compile again for another setting."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _names_kernels(device: torch.device) -> tuple[bool, list[str]]:
    """Whether the profiler works here: names are good to have, and not worth a row."""
    x = torch.randn(1, 1, 128, 64, device=device, dtype=torch.bfloat16)
    try:
        found = attention_kernels(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x), device)
    except Exception as problem:  # CUPTI fails in its own ways where a machine does not let it in
        return False, [f"no kernel names: the profiler does not run here ({type(problem).__name__})"]
    return bool(found), [] if found else ["no kernel names: the profiler sees no kernels here"]


def slug(name: str) -> str:
    """nvidia-h200 for NVIDIA H200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
