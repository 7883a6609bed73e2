"""Which attention kernel is fastest, and how do time and memory grow with the sequence length?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from llmbench.bench.candidates import piece_group
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.reduce import attention_of, with_attention
from llmbench.measure.results import Scalar
from llmbench.model.implementations import with_own_attention
from llmbench.sizing.traffic import BLOCK
from llmbench.sizing.work import Pass
from llmbench.spec.position import Alibi, Positions, Rope

__all__ = ["EXPERIMENT"]


@dataclass(frozen=True)
class Plan:
    """The shapes of a preset.

    `lengths`: the sequence lengths with the causal mask, in tokens. `masked_lengths`: the sequence lengths with a
    window and with ALiBi. `kv_heads`, `value_dim`: the numbers of a chosen model; None: as many KV heads as heads, and
    values as wide as keys.
    """

    batches: tuple[int, ...]
    heads: int
    head_dims: tuple[int, ...]
    lengths: tuple[int, ...]
    masked_lengths: tuple[int, ...]
    passes: tuple[Pass, ...] = ("forward", "backward")
    impls: tuple[str, ...] = field(default_factory=with_own_attention)
    kv_heads: int | None = None
    value_dim: int | None = None


def plan(ask: Ask) -> Plan:
    """Return the shapes of the preset, in which the shape that the user chose replaces the preset's shape."""
    preset = _preset(ask)
    shape = replace(
        preset,
        batches=ask.shape.batches or preset.batches,
        lengths=ask.lengths(preset.lengths),
        masked_lengths=ask.lengths(preset.masked_lengths),
    )
    if ask.shape.model is None:
        return shape
    mixer = attention_of(with_attention(ask.shape.model))
    return replace(
        shape,
        heads=mixer.num_attention_heads,
        kv_heads=mixer.num_key_value_heads,
        head_dims=(mixer.key_dim,),
        value_dim=None if mixer.value_dim == mixer.key_dim else mixer.value_dim,
    )


def _preset(ask: Ask) -> Plan:
    """Return the shapes of the preset. On a GPU, the heads are those of a 7B model.

    On a CPU, the quick preset omits three kernels. A CPU does not have the memory-efficient kernel and the cuDNN
    kernel. The compilation of FlexAttention takes minutes on a CPU.
    """
    if ask.on_gpu:
        if ask.quick:
            return Plan((4,), 32, (128,), (512, 2048), (2048,))
        return Plan((4,), 32, (128, 64), (512, 1024, 2048, 4096, 8192, 16384), (2048, 8192))
    if ask.quick:
        return Plan((1,), 4, (64,), (64, 128), (128,), impls=("standard", "flash", "sdpa"))
    return Plan((1,), 8, (64,), (512, 1024, 2048, 4096), (1024,))


MASKS: dict[str, tuple[dict[str, Any], Positions]] = {
    "causal": ({}, Rope()),
    "window": ({"sliding_window": 0}, Rope()),
    "alibi": ({}, Alibi()),
}
"""For each mask: the mixer fields that plain causal attention does not have, and the position encoding. The value 0 is
a placeholder: `_group` sets these mixer fields to an eighth of the sequence length."""


def groups(ask: Ask) -> list[Group]:
    """Return the groups with the causal mask at all lengths, followed by the groups with a window and with ALiBi."""
    shape = plan(ask)
    sweep = [
        (batch, dim, length, "causal", direction)
        for batch, dim, length, direction in product(shape.batches, shape.head_dims, shape.lengths, shape.passes)
    ]
    masked = product(shape.batches, shape.head_dims[:1], shape.masked_lengths, ("window", "alibi"), shape.passes)
    return [_group(ask, shape, *case) for case in (*sweep, *masked)]


def _group(ask: Ask, shape: Plan, batch: int, head_dim: int, length: int, mask: str, direction: Pass) -> Group:
    changes, positions = MASKS[mask]
    changes = dict.fromkeys(changes, max(1, length // 8))
    mixer = heads(shape.heads, shape.kv_heads or shape.heads, head_dim, v_head_dim=shape.value_dim, **changes)
    spec = model_of("attention", shape.heads * head_dim, mixer=mixer, positions=positions)
    setting = ask.setting(spec, batch=batch, seq_len=length, direction=direction)
    case: dict[str, Scalar] = {
        **ask.shape.case,
        "mask": mask,
        "pass": direction,
        "head_dim": head_dim,
        "heads": shape.heads,
        "batch": batch,
        "dtype": ask.dtype,
        "seq_len": length,
    }
    if shape.kv_heads is not None:
        case["kv_heads"] = shape.kv_heads
    return piece_group(find_piece("attention"), setting, shape.impls, case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    question="which attention kernel is fastest, and how do time and memory grow with the sequence length?",
    groups=groups,
    baseline="standard",
    chart=Chart("seq_len", "tokens per sequence"),
    model_note="the attention has the heads of the model, with the masks of this experiment",
    notes=(
        "bytes moved: standard writes and reads its scores. The other kernels read keys and values again for each block"
        f" of {BLOCK} queries, as our kernels do. A cache can save a part of these reads",
        "window, alibi: standard and torch's kernels build the mask and the bias in every call, as in a layer",
        "window, alibi: on a GPU, the flash kernel needs no mask tensor and no bias tensor",
        "window, alibi: flex builds its block mask before the timing",
    ),
)
