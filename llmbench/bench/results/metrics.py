"""The metrics of a row, in base units: rates, shares of the limits, memory and prediction error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.environment import Environment
from llmbench.measure.measurement import Ratio, ratio
from llmbench.measure.reference import Limits, ReferenceMeasurements, datasheet_limits
from llmbench.measure.results import Key, Row, Scalar
from llmbench.spec.catalog import load_device
from llmbench.spec.device import DType

__all__ = ["MachineLimits", "Metrics", "as_json", "metrics", "peak_bytes"]


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


class Metrics(NamedTuple):
    """The metrics of a row. None means unknown.

    `share_of_limit`, `share_of_datasheet`: the least time by the roofline, divided by the measured time. `peak_bytes`:
    the bytes of the inputs and of everything that the call allocated at its peak. `prediction_error`: (predicted -
    measured) / measured. `speedup`: the time of the baseline divided by the time of the row, as the median over pairs
    of samples. `speedup_p10`, `speedup_p90`: percentiles of the same ratios. `tokens_per_s`, `joules_per_token`: known
    only for a row with a number of tokens.
    """

    seconds: float | None = None
    p10_s: float | None = None
    p90_s: float | None = None
    iqr_s: float | None = None
    spread: float | None = None
    n: int | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    share_of_limit: float | None = None
    share_of_datasheet: float | None = None
    peak_bytes: int | None = None
    need_bytes: int | None = None
    predicted_s: float | None = None
    prediction_error: float | None = None
    speedup: float | None = None
    speedup_p10: float | None = None
    speedup_p90: float | None = None
    tokens_per_s: float | None = None
    joules_per_call: float | None = None
    joules_per_token: float | None = None


def metrics(row: Row, limits: MachineLimits, baseline: Row | None = None) -> Metrics:
    """Return the metrics of one row. `baseline`: the row of the same group with which this row is compared."""
    known = Metrics(need_bytes=row.need_bytes, predicted_s=row.predicted_s)
    if row.measurement is None or not row.seconds:
        return known
    tokens = row.extra.get("tokens")
    tokens = tokens if isinstance(tokens, int) else None
    joules = None if row.energy is None else row.energy.joules_per_call
    times, speedup = row.measurement, _speedup(row, baseline)
    if speedup is not None:
        known = known._replace(speedup=speedup.median, speedup_p10=speedup.p10, speedup_p90=speedup.p90)
    return known._replace(
        seconds=row.seconds,
        p10_s=times.p10_s,
        p90_s=times.p90_s,
        iqr_s=times.iqr_s,
        spread=times.spread,
        n=times.n,
        flops_per_s=row.flops_per_s,
        bytes_per_s=row.bytes_per_s,
        share_of_limit=_share(row, limits.limits_of(row)),
        share_of_datasheet=_share(row, limits.datasheet),
        peak_bytes=peak_bytes(row),
        prediction_error=row.predicted_s / row.seconds - 1 if row.predicted_s else None,
        tokens_per_s=tokens / row.seconds if tokens else None,
        joules_per_call=joules,
        joules_per_token=joules / tokens if joules is not None and tokens else None,
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


def _speedup(row: Row, baseline: Row | None) -> Ratio | None:
    if baseline is None or baseline.measurement is None or row.measurement is None:
        return None
    try:
        return ratio(baseline.measurement, row.measurement)
    except LLMBenchError:  # the rows come from two sessions, or a time is 0
        return None


def as_json(
    rows: Iterable[Row],
    limits: MachineLimits,
    baselines: Mapping[int, Row],
    derived: Callable[[Row, MachineLimits], Mapping[str, Scalar]] = lambda row, limits: {},
) -> list[dict[str, Any]]:
    """Return the rows as JSON objects. Each object has the fields of a results file. Its field `derived` has the
    metrics of the row and the figures that the experiment's function `derived` computes. `baselines`: the baseline of
    each row, by the index of the row."""
    return [
        msgspec.to_builtins(row)
        | {"derived": metrics(row, limits, baselines.get(index))._asdict() | dict(derived(row, limits))}
        for index, row in enumerate(rows)
    ]
