"""A close look at one piece: time and memory beside what is predicted, plain torch beside it, where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from llmbench.bench.by_kernel import OpTime, in_ranges, op_times, profiled
from llmbench.bench.experiment import FULL, Pace, run
from llmbench.bench.figures import Yardsticks
from llmbench.bench.others import WAYS
from llmbench.bench.rivals import COMPILED, call_of, check_passes, known_name, piece_group, way_of
from llmbench.bench.setting import Piece, Setting
from llmbench.errors import LLMBenchError
from llmbench.measure.anchors import Sizes, measure_anchors
from llmbench.measure.clock import Clock, clock_for
from llmbench.measure.environment import Environment, environment
from llmbench.measure.results import Row
from llmbench.model.devices import device_of
from llmbench.model.formats import Format
from llmbench.model.implementations import implementation
from llmbench.model.implementations.kernels import on_a_cpu
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.work import Pass
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec

__all__ = ["Profile", "chosen", "profile", "setting_of"]


class Profile(NamedTuple):
    """Rows of the rivals, the one that was asked for first; what they are held against; and where the time of the first
    goes (None where that was not asked for)."""

    rows: list[Row]
    yardsticks: Yardsticks
    environment: Environment
    ops: list[OpTime] | None
    notes: list[str]


def setting_of(
    piece: Piece,
    spec: ModelSpec | None,
    *,
    seq_len: int | None,
    batch: int | None,
    dtype: Format | None,
    of: Pass,
    device: str,
) -> tuple[Setting, list[str]]:
    """Where and at what shape a piece is timed, and what was chosen for lack of other orders: a GPU has larger shapes
    than a CPU, and bf16 where that has fp32."""
    where = device_of(device)
    if where.type == "meta":
        raise LLMBenchError("--device meta: what has no memory takes no time", hint="cpu, cuda or auto")
    kind: Literal["cuda", "cpu"] = "cuda" if where.type == "cuda" else "cpu"
    model, changes, usual_batch, usual_seq = piece.shapes[kind]
    notes = []
    if spec is None:
        from llmbench.spec.override import override

        spec = override(find_model(model), changes)
    if kind == "cpu" and (seq_len is None or batch is None):
        usual = f"{usual_batch} × {usual_seq:,} tokens, fp32"
        notes.append(f"on a CPU defaults are small: {usual}; --seq, --batch, --dtype and --model change them")
    setting = Setting(
        spec=piece.alone(spec),
        batch=batch or usual_batch,
        seq_len=seq_len or usual_seq,
        dtype=dtype or ("bf16" if kind == "cuda" else "fp32"),
        device=where,
        of=of,
    )
    if piece.name == "model":
        refuse_beyond_positions(spec, setting.seq_len)
    check_passes(piece, setting)
    return setting, notes


def chosen(piece: Piece, impl: str | None, device: torch.device) -> list[str]:
    """The rivals: what was asked for or is usual there, and plain torch. Raises UnknownNameError for no known name."""
    usual = piece.impl if device.type == "cuda" else piece.cpu_impl
    name = impl or usual or "standard"
    known_name(name)
    return list(dict.fromkeys([name, "standard"]))


def profile(
    piece: Piece,
    setting: Setting,
    names: Sequence[str],
    *,
    pace: Pace = FULL,
    sizes: Sizes | None = None,
    clock: Clock | None = None,
    by_kernel: bool = False,
    trace: Path | None = None,
) -> Profile:
    """Measure it. `sizes`: of the anchors."""
    clock = clock or clock_for(setting.device)
    found = environment(setting.device)
    anchors = measure_anchors(clock, setting.format, sizes=sizes)
    yardsticks = Yardsticks.of(anchors, found, setting.dtype)
    group = piece_group(
        piece,
        setting,
        names,
        experiment="profile",
        case={
            "piece": piece.name,
            "model": setting.spec.name,
            "batch": setting.batch,
            "seq_len": setting.seq_len,
            "dtype": setting.dtype,
            "pass": setting.of,
        },
        pace=pace,
    )
    group = replace(group, energy=True)
    by_name = {row.implementation: row for row in run([group], clock=clock, anchors=anchors)}
    rows = [by_name[name] for name in names]
    ops = None
    if (by_kernel or trace is not None) and rows[0].status == "ok":
        ops = _ops(piece, setting, names[0], yardsticks, trace)
    return Profile(rows, yardsticks, found, ops, _notes(rows, setting))


def _ops(piece: Piece, setting: Setting, name: str, yardsticks: Yardsticks, trace: Path | None) -> list[OpTime]:
    made = piece.make(setting)
    if name == COMPILED:
        launches = profiled(call_of(made, way_of(name), setting), setting.device, trace)
    else:
        # Of a backward pass by itself nothing would tell which forward it is of.
        whole = setting.but(of="both") if setting.backward else setting
        with in_ranges(made.model) as ranged:
            how = ranged(WAYS[name]() if name in WAYS else implementation(name))

            def run_ranged(**inputs: object) -> object:
                return made.run(how, **inputs)

            launches = profiled(call_of(made, lambda _: run_ranged, whole), setting.device, trace)
    limits = yardsticks.anchors.limits(read_only=piece.phase == "decode")
    return op_times(launches, piece.ops(setting, "standard" if name == COMPILED else name), setting.of, limits)


def _notes(rows: list[Row], setting: Setting) -> list[str]:
    notes = []
    if setting.device.type == "cpu" and rows[0].implementation in ("flash", "fused"):
        notes.append(on_a_cpu())
    for row in rows:
        if row.status != "ok":
            need = "" if row.need_bytes is None else f"; needs {row.need_bytes / 2**30:,.2f} GiB"
            notes.append(f"{row.implementation}: {row.status}, {row.reason}{need if row.status == 'OOM' else ''}")
        elif row.measurement is not None:
            notes += [f"{row.implementation}: {remark}" for remark in row.measurement.remarks()]
    return notes
