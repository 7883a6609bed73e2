"""A close look at one piece: time and memory beside what is predicted, plain torch beside it, where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from llmbench.bench.candidates import (
    COMPILED,
    alike,
    call_of,
    check_passes,
    implementation_of,
    known_name,
    piece_group,
    way_of,
)
from llmbench.bench.experiments.experiment import FULL, Pace, run
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.profile.by_op import OpTime, Recording, in_ranges, op_times, profiled
from llmbench.bench.results.metrics import Yardsticks
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.measure.clock import Clock, clock_for
from llmbench.measure.environment import Environment, environment
from llmbench.measure.reference import Sizes, measure_references
from llmbench.measure.results import Row
from llmbench.model.devices import device_of
from llmbench.model.formats import Format
from llmbench.model.implementations.kernels import on_a_cpu
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.work import Pass
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec

__all__ = ["Profile", "chosen", "profile", "setting_of"]


class Profile(NamedTuple):
    """Rows of the rivals, the one that was asked for first; what they are held against; and where the time of the first
    goes, with what the profiler saw of it: None where that was not asked for, or for the reason `unrecorded`."""

    rows: list[Row]
    yardsticks: Yardsticks
    environment: Environment
    notes: list[str]
    ops: list[OpTime] | None = None
    recording: Recording | None = None
    unrecorded: str = ""


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


def chosen(piece: Piece, impl: str | None, setting: Setting) -> list[str]:
    """The rivals: what was asked for, or is usual there and is not plain torch by another name, and plain torch. Raises
    UnknownNameError for no known name."""
    if impl is not None:
        known_name(impl)
    usual = impl or (piece.impl if setting.device.type == "cuda" else piece.cpu_impl) or "standard"
    try:
        plain = alike(piece, setting, usual)
    except CannotRunError:  # its row says so
        plain = False
    return ["standard"] if plain and impl is None else list(dict.fromkeys([usual, "standard"]))


def profile(
    piece: Piece,
    setting: Setting,
    names: Sequence[str],
    *,
    pace: Pace = FULL,
    sizes: Sizes | None = None,
    clock: Clock | None = None,
    by_kernel: bool = False,
) -> Profile:
    """Measure it. `sizes`: of the reference measurements; `by_kernel`: also where the time of the first goes."""
    clock = clock or clock_for(setting.device)
    found = environment(setting.device)
    references = measure_references(clock, setting.format, sizes=sizes)
    yardsticks = Yardsticks.of(references, found, setting.dtype)
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
    by_name = {row.implementation: row for row in run([group], clock=clock, references=references)}
    rows = [by_name[name] for name in names]
    measured = Profile(rows, yardsticks, found, _notes(rows, setting))
    if not by_kernel:
        return measured
    if rows[0].status != "ok":
        return measured._replace(unrecorded=f"{names[0]} is {rows[0].status}, and was not looked into")
    try:
        recording = _recorded(piece, setting, names[0])
    except RuntimeError as problem:  # torch's; the times are known, and are not lost for it
        text = str(problem).partition("\n")[0]
        return measured._replace(unrecorded=f"{names[0]} does not run under the profiler: {text}")
    limits = references.limits(piece.bandwidth)
    ops = piece.ops(setting, "standard" if names[0] == COMPILED else names[0])
    return measured._replace(ops=op_times(recording.launches, ops, setting.of, limits), recording=recording)


def _recorded(piece: Piece, setting: Setting, name: str) -> Recording:
    """A call of that implementation under the profiler, in ranges of its ops."""
    made = piece.make(setting)
    if name == COMPILED:
        return profiled(call_of(made, way_of(name), setting), setting.device)
    # Of a backward pass by itself nothing would tell which forward it is of.
    whole = setting.but(of="both") if setting.backward else setting
    with in_ranges(made.model) as ranged:
        how = ranged(implementation_of(name))

        def run_ranged(**inputs: object) -> object:
            return made.run(how, **inputs)

        return profiled(call_of(made, lambda _: run_ranged, whole), setting.device)


def _notes(rows: list[Row], setting: Setting) -> list[str]:
    notes = []
    if setting.device.type == "cpu" and rows[0].implementation in ("flash", "fused") and rows[0].status == "ok":
        notes.append(on_a_cpu())
    for row in rows:
        if row.status != "ok":
            need = "" if row.need_bytes is None else f"; needs {row.need_bytes / 2**30:,.2f} GiB"
            notes.append(f"{row.implementation}: {row.status}, {row.reason}{need if row.status == 'OOM' else ''}")
        elif row.measurement is not None:
            notes += [f"{row.implementation}: {remark}" for remark in row.measurement.remarks()]
    return notes
