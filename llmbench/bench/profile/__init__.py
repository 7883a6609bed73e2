"""Profile one piece: measure its time, its memory and its kernels, and compare the result with the prediction and with
plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from llmbench.bench.candidates import call_of, check_direction, piece_group, same_as_standard
from llmbench.bench.experiments.experiment import FULL, Pace, run
from llmbench.bench.extra_candidates import binder_of, check_name, implementation_of, traits_of
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.profile.by_op import TRACE, OpTime, Recording, in_ranges, op_times, profiled
from llmbench.bench.results.metrics import MachineLimits
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.measure.clock import Clock, clock_for
from llmbench.measure.environment import Environment, environment
from llmbench.measure.reference import Sizes, measure_references
from llmbench.measure.results import Row
from llmbench.model.devices import device_of
from llmbench.model.formats import Format
from llmbench.model.implementations.kernels import NO_MEANING, interpreted, on_a_cpu
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.work import Pass
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec

__all__ = ["TRACE", "Profile", "Target", "candidate_names", "profile", "target_of"]


class Profile(NamedTuple):
    """The result of `profile`.

    `rows`: the rows of the candidates; the requested candidate is first. `limits`: the limits with which the rows are
    compared. `ops`: the time of each op of the first candidate. `recording`: the profiler's record of the first
    candidate. Both `ops` and `recording` are None if they were not requested or if the recording failed. `unrecorded`:
    the reason why the recording failed. `caution`: a sentence if the times have no meaning, or "".
    """

    rows: list[Row]
    limits: MachineLimits
    environment: Environment
    notes: list[str]
    ops: list[OpTime] | None = None
    recording: Recording | None = None
    unrecorded: str = ""
    caution: str = ""


class Target(NamedTuple):
    """What `profile` times.

    `setting`: the setting of the piece, with the model reduced to the piece. `model`: the whole model. `change`: in
    words, how the default model differs from the model with its name; "" if it does not differ. `notes`: notes about
    the defaults that were used.
    """

    setting: Setting
    model: ModelSpec
    change: str
    notes: list[str]

    @property
    def layer(self) -> str:
        """The layer that is timed, in words, if the model has several kinds of layers; otherwise ""."""
        kinds = list(self.model.layers)
        timed = list(self.setting.spec.layers)
        return f"layer kind `{timed[0]}` of {', '.join(kinds)}" if len(kinds) > 1 and len(timed) == 1 else ""


def target_of(
    piece: Piece,
    spec: ModelSpec | None,
    *,
    seq_len: int | None,
    batch: int | None,
    dtype: Format | None,
    direction: Pass,
    device: str,
) -> Target:
    """Return the setting at which a piece is timed. On a GPU, the default shapes are larger than on a CPU, and the
    default format is bf16. On a CPU, the default format is fp32."""
    where = device_of(device)
    if where.type == "meta":
        raise LLMBenchError("--device meta cannot be timed: it allocates no memory", hint="choose cpu, cuda or auto")
    kind: Literal["cuda", "cpu"] = "cuda" if where.type == "cuda" else "cpu"
    model, changes, default_batch, default_seq = piece.shapes[kind]
    notes, change = [], ""
    if spec is None:
        from llmbench.spec.override import override

        spec, change = override(find_model(model), changes), piece.default_change if changes else ""
    setting = Setting(
        spec=piece.reduce(spec),
        batch=batch or default_batch,
        seq_len=seq_len or default_seq,
        dtype=dtype or ("bf16" if kind == "cuda" else "fp32"),
        device=where,
        direction=direction,
    )
    if kind == "cpu" and (seq_len is None or batch is None):
        shape = f"{setting.batch:,} × {setting.seq_len:,} tokens, {setting.dtype}"
        notes.append(f"defaults on a CPU are small, here {shape}; --seq, --batch, --dtype and --model change them")
    if piece.name == "model":
        refuse_beyond_positions(spec, setting.seq_len)
    check_direction(piece, setting)
    return Target(setting, spec, change, notes)


def candidate_names(piece: Piece, impl: str | None, setting: Setting) -> list[str]:
    """Return the names of the candidates: the requested implementation, or the piece's default on that device, and then
    plain torch.

    A default that computes the piece exactly as plain torch does is left out. Raises UnknownNameError for an unknown
    name.
    """
    if impl is not None:
        check_name(impl)
    first = impl or (piece.impl if setting.device.type == "cuda" else piece.cpu_impl)
    try:
        same = same_as_standard(piece, setting, first)
    except CannotRunError:  # the candidate cannot run here; its row gives the reason
        same = False
    return ["standard"] if same and impl is None else list(dict.fromkeys([first, "standard"]))


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
    """Measure the candidates `names` on a piece. `sizes`: the sizes of the reference measurements. `by_kernel`: whether
    the time of each kernel of the first candidate is recorded too."""
    clock = clock or clock_for(setting.device)
    machine = environment(setting.device)
    references = measure_references(clock, setting.format, sizes=sizes)
    limits = MachineLimits.on(references, machine, setting.dtype)
    group = piece_group(
        piece,
        setting,
        names,
        case={
            "piece": piece.name,
            "model": setting.spec.name,
            "batch": setting.batch,
            "seq_len": setting.seq_len,
            "dtype": setting.dtype,
            "pass": setting.direction,
        },
        pace=pace,
    )
    group = replace(group, experiment="profile", energy=True)
    by_name = {row.implementation: row for row in run([group], clock=clock, references=references)}
    rows = [by_name[name] for name in names]
    caution = NO_MEANING if _kernels_on_a_cpu(rows, setting) and interpreted() else ""
    measured = Profile(rows, limits, machine, _notes(rows, setting), caution=caution)
    if not by_kernel:
        return measured
    if rows[0].status != "ok":
        return measured._replace(unrecorded=f"{names[0]} is {rows[0].status}, so its kernels were not recorded")
    try:
        recording = _recorded(piece, setting, names[0])
    except RuntimeError as problem:  # the profiler failed, but the measured times are valid
        text = str(problem).partition("\n")[0]
        return measured._replace(unrecorded=f"the profiler failed while it recorded {names[0]}: {text}")
    ops = piece.ops(setting, traits_of(names[0]))
    times = op_times(recording.launches, ops, setting.direction, references.limits(piece.bandwidth))
    return measured._replace(ops=times, recording=recording)


def _recorded(piece: Piece, setting: Setting, name: str) -> Recording:
    """Return the profiler's record of one call with the implementation `name`. Each op runs in a profiler range that
    has the op's name."""
    built = piece.build(setting)
    if traits_of(name).compiled == "piece":  # compiled code has no ranges
        return profiled(call_of(built, binder_of(name)(built.run), setting), setting.device)
    # A backward pass is recorded together with its forward pass. The forward pass shows which op each kernel of the
    # backward pass belongs to.
    whole = setting.changed(direction="both") if setting.backward else setting
    with in_ranges(built.model) as ranged:
        run = partial(built.run, ranged(implementation_of(name)))
        return profiled(call_of(built, run, whole), setting.device)


def _kernels_on_a_cpu(rows: list[Row], setting: Setting) -> bool:
    """Return whether an implementation with Triton kernels was timed on a CPU."""
    timed = [row.implementation for row in rows if row.status == "ok"]
    return setting.device.type == "cpu" and any(traits_of(name).triton for name in timed)


def _notes(rows: list[Row], setting: Setting) -> list[str]:
    notes = []
    if _kernels_on_a_cpu(rows, setting) and not interpreted():
        notes.append(on_a_cpu())
    for row in rows:
        if row.status != "ok":
            known = row.status == "OOM" and row.need_bytes is not None
            need = f"; needs {(row.need_bytes or 0) / 2**30:,.2f} GiB" if known else ""
            notes.append(f"{row.implementation}: {row.status}, {row.reason}{need}")
        elif row.measurement is not None:
            notes += [f"{row.implementation}: {remark}" for remark in row.measurement.remarks()]
    return notes
