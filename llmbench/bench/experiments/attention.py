"""Which attention is fastest, and how do time and memory grow with length?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from llmbench.bench.candidates import piece_group
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.piece import Setting
from llmbench.measure.results import Scalar
from llmbench.sizing.work import Pass
from llmbench.spec.position import Alibi, Positions, Rope

__all__ = ["EXPERIMENT"]

RIVALS = ("standard", "flash", "sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "flex")


@dataclass(frozen=True)
class Plan:
    """Lengths of the sweep, and those at which windows and ALiBi are tried."""

    batch: int
    heads: int
    head_dims: tuple[int, ...]
    lengths: tuple[int, ...]
    masked_lengths: tuple[int, ...]
    passes: tuple[Pass, ...] = ("forward", "backward")
    rivals: tuple[str, ...] = RIVALS


def plan(ask: Ask) -> Plan:
    """Heads of a 7B model on a GPU. A CPU has no memory-efficient or cuDNN kernel, and compiles FlexAttention for
    minutes: those are left out where time is short."""
    if ask.on_gpu:
        if ask.quick:
            return Plan(4, 32, (128,), (512, 2048), (2048,))
        return Plan(4, 32, (128, 64), (512, 1024, 2048, 4096, 8192, 16384), (2048, 8192))
    if ask.quick:
        return Plan(1, 4, (64,), (64, 128), (128,), rivals=("standard", "flash", "sdpa"))
    return Plan(1, 8, (64,), (512, 1024, 2048, 4096), (1024,))


MASKS: dict[str, tuple[dict[str, Any], Positions]] = {
    "causal": ({}, Rope()),
    "window": ({"sliding_window": 0}, Rope()),
    "alibi": ({}, Alibi()),
}
"""What a mask changes of a causal attention; a window is an eighth of the sequence."""


def groups(ask: Ask) -> list[Group]:
    """The sweep over lengths first, then what is masked or sloped."""
    of = plan(ask)
    sweep = [(dim, length, "causal", each) for dim, length, each in product(of.head_dims, of.lengths, of.passes)]
    others = product(of.head_dims[:1], of.masked_lengths, ("window", "alibi"), of.passes)
    return [_group(ask, of, *each) for each in (*sweep, *others)]


def _group(ask: Ask, of: Plan, head_dim: int, length: int, mask: str, passed: Pass) -> Group:
    changes, positions = MASKS[mask]
    changes = dict.fromkeys(changes, length // 8)
    mixer = heads(of.heads, of.heads, head_dim, **changes)
    setting = Setting(
        spec=model_of("attention", of.heads * head_dim, mixer=mixer, positions=positions),
        batch=of.batch,
        seq_len=length,
        dtype=ask.dtype,
        device=ask.device,
        of=passed,
    )
    case: dict[str, Scalar] = {
        "mask": mask,
        "pass": passed,
        "head_dim": head_dim,
        "heads": of.heads,
        "batch": of.batch,
        "dtype": ask.dtype,
        "seq_len": length,
    }
    return piece_group(find_piece("attention"), setting, of.rivals, experiment="attention", case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    name="attention",
    question="which attention is fastest, and how do time and memory grow with length?",
    groups=groups,
    baseline="standard",
    chart=Chart("seq_len", "tokens of a sequence"),
    notes=(
        "window, alibi: standard and torch's kernels make their mask and bias in every call, as they do in a layer;"
        " the flash kernel on a GPU needs none, flex has found its blocks before",
    ),
)
