"""The metrics of a measured row, in base units: rates, shares of the limits, memory and prediction error.

A method of `Line` describes a metric once: its value, its meaning, its heading and its unit in tables. Importing this
module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import Measurement, Ratio, ratio
from llmbench.report.fields import Field, record
from llmbench.report.units import Unit
from llmbench.spec.catalog import load_device
from llmbench.spec.device import DType

if TYPE_CHECKING:
    from llmbench.measure.environment import Environment
    from llmbench.measure.reference import Limits, ReferenceMeasurements
    from llmbench.measure.results import Key, Row, Scalar

__all__ = ["METRICS", "Line", "MachineLimits", "as_json", "compared_with", "peak_bytes"]

Value = TypeVar("Value")


class MachineLimits(NamedTuple):
    """The limits that measured rates are compared with.

    `references`: the reference measurements of this run. `datasheet`: the limits of the datasheet; None if the device
    has no datasheet. `earlier`: the reference measurements of earlier sessions, by the key of each row that was
    measured in those sessions.
    """

    references: ReferenceMeasurements
    datasheet: Limits | None
    earlier: Mapping[Key, ReferenceMeasurements] = MappingProxyType({})

    @classmethod
    def on(
        cls,
        references: ReferenceMeasurements,
        environment: Environment,
        dtype: DType,
        earlier: Mapping[Key, ReferenceMeasurements] | None = None,
    ) -> MachineLimits:
        """Return the limits of a machine for one number format."""
        from llmbench.measure.reference import datasheet_limits

        name = environment.datasheet
        datasheet = None if name is None else datasheet_limits(load_device(name), dtype)
        return cls(references, datasheet, earlier or {})

    def limits_of(self, row: Row) -> Limits:
        """Return the limits from which the prediction of the row was computed."""
        references = self.earlier.get(row.key, self.references)
        return references.limits("read" if row.extra.get("bandwidth") == "read" else "copy")

    def bound(self, row: Row) -> Literal["matrix products", "memory traffic"] | None:
        """Return the resource that limits the row according to its roofline, or None if the row's work is unknown."""
        if row.work_flops is None or row.work_bytes is None:
            return None
        limits = self.limits_of(row)
        by_products = row.work_flops / limits.flops_per_s > row.work_bytes / limits.bytes_per_s
        return "matrix products" if by_products else "memory traffic"

    def exceeded_by(self, row: Row) -> Literal["a cache", "the machine"] | None:
        """Return the reason why a row exceeds 100% of its limit, or None if it does not exceed its limit.

        "a cache": memory traffic is the limit and the caches were not emptied between calls, so the data stayed in a
        cache. "the machine": the machine was faster than during the reference measurements.
        """
        share = _share(row, self.limits_of(row))
        if row.measurement is None or share is None or share <= 1:
            return None
        warm = not row.measurement.cold and self.bound(row) == "memory traffic"
        return "a cache" if warm else "the machine"


class Metric(Generic[Value]):
    """A metric of a `Line`, described by a `Field`. The metric is computed on first use, and then kept."""

    def __init__(self, compute: Callable[[Any], Value], field: Field[Line]) -> None:
        self.compute, self.field = compute, field

    @overload
    def __get__(self, line: None, owner: type) -> Metric[Value]: ...
    @overload
    def __get__(self, line: object, owner: type) -> Value: ...
    def __get__(self, line: object | None, owner: type) -> Metric[Value] | Value:
        """Return the value for a line."""
        if line is None:
            return self
        value = self.compute(line)
        line.__dict__[self.field.name] = value  # later reads find this value, and do not call __get__
        return value


def metric(
    description: str, heading: str | None = None, unit: Unit = "text", **options: Any
) -> Callable[[Callable[[Any], Value]], Metric[Value]]:
    """Return a decorator for a method of `Line` that computes a metric. The name of the method is the key in JSON and
    CSV. The other options are those of `Field`. Metrics with the same `scale` are shown in the same unit."""
    options.setdefault("sparse", True)

    def described(compute: Callable[[Any], Value]) -> Metric[Value]:
        scale = options.pop("scale", compute.__name__ if heading else "")
        return Metric(compute, Field(compute.__name__, heading, unit, description=description, scale=scale, **options))

    return described


def _status(line: Line) -> str | None:
    """Return the status of a row without a time, which tables show in place of the time. Return None for other rows."""
    return None if line.row.status == "ok" else line.row.status


def _large_spread(line: Line) -> str | None:
    """Return the text for a spread above 100%, whose exact value says nothing more. Return None for other spreads."""
    return ">100%" if line.spread is not None and line.spread > 1 else None


class Line:
    """A measured row with its metrics. None means unknown: a row without a time has only predictions.

    `baseline`: the row of the same group with which this row is compared. `extra`: figures that the experiment adds.
    """

    def __init__(
        self, row: Row, limits: MachineLimits, baseline: Row | None = None, extra: Mapping[str, Scalar] | None = None
    ) -> None:
        self.row, self.limits, self.baseline = row, limits, baseline
        self.extra: Mapping[str, Scalar] = extra or {}

    @property
    def _times(self) -> Measurement | None:
        return self.row.measurement if self.row.seconds else None

    @property
    def _tokens(self) -> int | None:
        tokens = self.row.extra.get("tokens")
        return tokens if isinstance(tokens, int) and tokens else None

    @property
    def _speedup(self) -> Ratio | None:
        if self._times is None or self.baseline is None or self.baseline.measurement is None:
            return None
        try:
            return ratio(self.baseline.measurement, self._times)
        except LLMBenchError:  # the rows come from two sessions, or a time is 0
            return None

    @metric("median time of one call", "time", "ms", scale="time", sparse=False, text=_status)
    def seconds(self) -> float | None:
        return self.row.seconds or None

    @metric("interquartile range of the samples, as a share of the median", "spread", "percent", text=_large_spread)
    def spread(self) -> float | None:
        return self._times.spread if self._times else None

    @metric(
        "time of the baseline / time of the row: median of the ratios of paired samples",
        "speed-up",
        "ratio",
        scale="",
    )
    def speedup(self) -> float | None:
        return self._speedup.median if self._speedup else None

    @metric("(predicted time − measured time) / measured time", "prediction error", "error")
    def prediction_error(self) -> float | None:
        predicted, seconds = self.row.predicted_s, self.row.seconds
        return predicted / seconds - 1 if predicted and seconds else None

    @metric(
        "least time that the reference measurements allow (roofline) / median time. The reference measurements come "
        "from the session that measured the row",
        "share of limit",
        "percent",
        spare=3,
    )
    def share_of_limit(self) -> float | None:
        return _share(self.row, self.limits.limits_of(self.row))

    @metric(
        "peak memory of one call: its inputs and everything that it allocates",
        "peak memory",
        "gib",
        spare=2,
        scale="bytes",
    )
    def peak_bytes(self) -> int | None:
        return peak_bytes(self.row) if self._times else None

    @metric(
        "bytes that the attention of this implementation moves, with its scores or its blocks; null for other pieces",
        "bytes moved",
        "gib",
        spare=4,
        scale="bytes",
    )
    def moved_bytes(self) -> int | None:
        moved = self.row.extra.get("moved_bytes")
        return moved if isinstance(moved, int) else None

    @metric("tokens per second; null if the row has no value `tokens`", "tokens/s", "count", spare=6)
    def tokens_per_s(self) -> float | None:
        return self._tokens / self.row.seconds if self._tokens and self.row.seconds else None

    @metric(
        "predicted time: sum of the least times of the implementation's ops",
        "predicted time",
        "ms",
        spare=7,
        scale="time",
    )
    def predicted_s(self) -> float | None:
        return self.row.predicted_s

    @metric("achieved rate: FLOPs of one call / median time", "compute rate", "tflops_per_s", spare=8)
    def flops_per_s(self) -> float | None:
        return self.row.flops_per_s

    @metric("peak memory of one call that the op table predicts", "predicted peak", "gib", spare=9, scale="bytes")
    def need_bytes(self) -> int | None:
        return self.row.need_bytes

    @metric(
        "achieved memory traffic: least bytes that one call must read and write / median time",
        "memory traffic",
        "gb_per_s",
        spare=10,
    )
    def bytes_per_s(self) -> float | None:
        return self.row.bytes_per_s

    @metric("least time that the datasheet allows (roofline) / median time", "share of datasheet", "percent", spare=11)
    def share_of_datasheet(self) -> float | None:
        return _share(self.row, self.limits.datasheet)

    @metric("energy of the whole GPU board per token", "energy per token", "joules", spare=12)
    def joules_per_token(self) -> float | None:
        joules = self.joules_per_call
        return joules / self._tokens if joules is not None and self._tokens else None

    @metric("energy of the whole GPU board per call", "energy per call", "joules", spare=13)
    def joules_per_call(self) -> float | None:
        return self.row.energy.joules_per_call if self._times and self.row.energy else None

    @metric("number of samples")
    def n(self) -> int | None:
        return self._times.n if self._times else None

    @metric("10th percentile of the samples, in seconds")
    def p10_s(self) -> float | None:
        return self._times.p10_s if self._times else None

    @metric("90th percentile of the samples, in seconds")
    def p90_s(self) -> float | None:
        return self._times.p90_s if self._times else None

    @metric("interquartile range of the samples, in seconds")
    def iqr_s(self) -> float | None:
        return self._times.iqr_s if self._times else None

    @metric("10th percentile of the speed-up over the pairs of samples")
    def speedup_p10(self) -> float | None:
        return self._speedup.p10 if self._speedup else None

    @metric("90th percentile of the speed-up over the pairs of samples")
    def speedup_p90(self) -> float | None:
        return self._speedup.p90 if self._speedup else None


METRICS: tuple[Field[Line], ...] = tuple(metric.field for metric in vars(Line).values() if isinstance(metric, Metric))
"""The metrics of a measured row, in the order of the columns of a table: the most important one first."""


def compared_with(baseline: str) -> tuple[Field[Line], ...]:
    """Return METRICS with a heading of the speed-up that names the baseline."""
    heading = f"speed-up vs {baseline}"
    return tuple(
        msgspec.structs.replace(field, heading=heading) if field.name == "speedup" else field for field in METRICS
    )


def peak_bytes(row: Row) -> int | None:
    """Return the bytes of the inputs and of everything that the call allocated at its peak, or None if the memory was
    not measured."""
    if row.memory is None:
        return None
    inputs = row.extra.get("input_bytes")
    return row.memory.added_bytes + (inputs if isinstance(inputs, int) else 0)


def _share(row: Row, limits: Limits | None) -> float | None:
    if limits is None or not row.seconds or row.work_flops is None or row.work_bytes is None:
        return None
    return limits.least_s(row.work_flops, row.work_bytes) / row.seconds


def as_json(
    lines: Iterable[Line], derived: Callable[[Row, MachineLimits], Mapping[str, Scalar]] = lambda row, limits: {}
) -> list[dict[str, Any]]:
    """Return the rows as JSON objects. Each object has the fields of a results file. Its field `derived` has the
    metrics of the row and the figures that the experiment's function `derived` computes."""
    return [
        msgspec.to_builtins(line.row) | {"derived": record(METRICS, line) | dict(derived(line.row, line.limits))}
        for line in lines
    ]
