"""What a row says, worked out: rates, shares of the limits, memory, how far the prediction was off. Base units."""

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

__all__ = ["Figures", "Yardsticks", "figures", "peak_bytes", "plain"]


class Yardsticks(NamedTuple):
    """What rates are held against: the machine as it was found, and as its datasheet has it (None where that is not
    known). `earlier`: as the sessions found it that measured these rows."""

    references: ReferenceMeasurements
    datasheet: Limits | None
    earlier: Mapping[Key, ReferenceMeasurements] = MappingProxyType({})

    @classmethod
    def of(
        cls,
        references: ReferenceMeasurements,
        environment: Environment,
        dtype: DType,
        earlier: Mapping[Key, ReferenceMeasurements] | None = None,
    ) -> Yardsticks:
        """Those of a machine for a format."""
        name = environment.datasheet
        datasheet = None if name is None else datasheet_limits(load_device(name), dtype)
        return cls(references, datasheet, earlier or {})

    def limits(self, row: Row) -> Limits:
        """The machine's roofline for a row: the one that its prediction was made with."""
        references = self.earlier.get(row.key, self.references)
        return references.limits("read" if row.extra.get("bandwidth") == "read" else "copy")

    def bound(self, row: Row) -> Literal["products", "memory traffic"] | None:
        """Which of them takes a row longer by its roofline; None where its work is not known."""
        if row.work_flops is None or row.work_bytes is None:
            return None
        limits = self.limits(row)
        by_products = row.work_flops / limits.flops_per_s > row.work_bytes / limits.bytes_per_s
        return "products" if by_products else "memory traffic"

    def beaten_by(self, row: Row) -> Literal["a cache", "the machine"] | None:
        """What let a row pass its limit, if it did: where bytes set the limit and calls came one after the other on the
        same data, these were in a cache; else the machine did more than while its limits were measured."""
        share = _share(row, self.limits(row))
        if row.measurement is None or share is None or share <= 1:
            return None
        warm = not row.measurement.cold and self.bound(row) == "memory traffic"
        return "a cache" if warm else "the machine"


class Figures(NamedTuple):
    """None is unknown. `of_anchor`, `of_datasheet`: the least time by the roofline over the time taken. `peak_bytes`:
    inputs and all that the call added. `off`: predicted over measured, less one. `speedup`: how many times as long the
    baseline takes, sample by sample: median, 10th and 90th percentile. `tokens_per_s`, `joules_per_token` where rows
    say of how many tokens they are."""

    seconds: float | None = None
    p10_s: float | None = None
    p90_s: float | None = None
    iqr_s: float | None = None
    spread: float | None = None
    n: int | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    of_anchor: float | None = None
    of_datasheet: float | None = None
    peak_bytes: int | None = None
    need_bytes: int | None = None
    predicted_s: float | None = None
    off: float | None = None
    speedup: float | None = None
    speedup_p10: float | None = None
    speedup_p90: float | None = None
    tokens_per_s: float | None = None
    joules_per_call: float | None = None
    joules_per_token: float | None = None


def figures(row: Row, yardsticks: Yardsticks, baseline: Row | None = None) -> Figures:
    """Of one row; `baseline` is the row of its group that it is compared with."""
    known = Figures(need_bytes=row.need_bytes, predicted_s=row.predicted_s)
    if row.measurement is None or not row.seconds:
        return known
    tokens = row.extra.get("tokens")
    tokens = tokens if isinstance(tokens, int) else None
    joules = None if row.energy is None else row.energy.joules_per_call
    times, compared = row.measurement, _speedup(row, baseline)
    if compared is not None:
        known = known._replace(speedup=compared.median, speedup_p10=compared.p10, speedup_p90=compared.p90)
    return known._replace(
        seconds=row.seconds,
        p10_s=times.p10_s,
        p90_s=times.p90_s,
        iqr_s=times.iqr_s,
        spread=times.spread,
        n=times.n,
        flops_per_s=row.flops_per_s,
        bytes_per_s=row.bytes_per_s,
        of_anchor=_share(row, yardsticks.limits(row)),
        of_datasheet=_share(row, yardsticks.datasheet),
        peak_bytes=peak_bytes(row),
        off=row.predicted_s / row.seconds - 1 if row.predicted_s else None,
        tokens_per_s=tokens / row.seconds if tokens else None,
        joules_per_call=joules,
        joules_per_token=joules / tokens if joules is not None and tokens else None,
    )


def peak_bytes(row: Row) -> int | None:
    """Inputs and all that a call added at its fullest moment; None where memory was not measured."""
    if row.memory is None:
        return None
    held = row.extra.get("input_bytes")
    return row.memory.added_bytes + (held if isinstance(held, int) else 0)


def _share(row: Row, limits: Limits | None) -> float | None:
    if limits is None or not row.seconds or row.work_flops is None or row.work_bytes is None:
        return None
    return limits.least_s(row.work_flops, row.work_bytes) / row.seconds


def _speedup(row: Row, baseline: Row | None) -> Ratio | None:
    if baseline is None or baseline.measurement is None or row.measurement is None:
        return None
    try:
        return ratio(baseline.measurement, row.measurement)
    except LLMBenchError:  # of two sessions, or of no time at all
        return None


def plain(
    rows: Iterable[Row],
    yardsticks: Yardsticks,
    baselines: Mapping[int, Row],
    derived: Callable[[Row, Yardsticks], Mapping[str, Scalar]] = lambda row, yardsticks: {},
) -> list[dict[str, Any]]:
    """Rows as JSON has them: those of a file of results, each with its figures and what an experiment has `derived`
    from them. `baselines` by a row's place."""
    return [
        msgspec.to_builtins(row)
        | {"derived": figures(row, yardsticks, baselines.get(index))._asdict() | dict(derived(row, yardsticks))}
        for index, row in enumerate(rows)
    ]
