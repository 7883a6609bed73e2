"""Rows, headers and measurements for tests, made without measuring."""

from __future__ import annotations

from typing import Any

from llmbench.measure.environment import Environment
from llmbench.measure.measurement import Measurement
from llmbench.measure.reference import ReferenceMeasurement, ReferenceMeasurements
from llmbench.measure.results import Header, Results, Row, Session

ENVIRONMENT = Environment(
    llmbench="0.1.0",
    commit=None,
    python="3.11.7",
    os="Linux x86_64",
    cpu="AMD EPYC",
    cpu_count=2,
    threads=2,
    device="cpu",
    datasheet=None,
    memory_bytes=None,
    compute_capability=None,
    driver=None,
    torch="2.13.0",
    cuda=None,
    cudnn=None,
    triton=None,
    ptxas=None,
)


def timed(*samples_s: float, **more: Any) -> Measurement:
    """A CPU measurement with these samples."""
    return Measurement(samples_s=samples_s, clock="cpu", **more)


def references(matmul_s: float = 1e-3) -> ReferenceMeasurements:
    """1 TFLOP/s (or as `matmul_s` says), 100 GB/s copied, 50 GB/s read, 5 µs per launch."""
    return ReferenceMeasurements(
        matmul=ReferenceMeasurement(description="product", work=10**9, measurement=timed(matmul_s)),
        copy=ReferenceMeasurement(description="copy", work=10**9, measurement=timed(1e-2)),
        read=ReferenceMeasurement(description="sum", work=10**9, measurement=timed(2e-2)),
        launch=ReferenceMeasurement(description="launches", work=1000, measurement=timed(5e-3)),
    )


def header(**more: Any) -> Header:
    """A header of a session."""
    fields: dict[str, Any] = {"command": "bench attention", "inputs": {"seq": [512, 1024]}, "environment": ENVIRONMENT}
    return Header(**(fields | more))


def row(name: str = "flash", *samples_s: float, status: Any = "ok", seq: int = 512, **more: Any) -> Row:
    """A row with a measurement or, unless its status is "ok", a reason."""
    if status == "ok":
        more["measurement"] = timed(*(samples_s or (0.01, 0.011, 0.0105)))
    else:
        more["reason"] = "for a reason"
    return Row(experiment="attention", case={"seq": seq, "causal": True}, implementation=name, status=status, **more)


def results(*rows: Row, **more: Any) -> Results:
    """The content of a file with one session."""
    return Results("file.jsonl", [Session(header(**more), list(rows))], [])
