"""What does a norm cost: LayerNorm or RMSNorm, alone or with the residual sum, fused or not?"""

from __future__ import annotations

from itertools import product

from llmbench.bench.baselines import COMPILED
from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.measure.results import Scalar
from llmbench.sizing.work import Pass
from llmbench.spec.model import Norm

__all__ = ["EXPERIMENT"]

NORMS = {"LayerNorm": Norm(kind="layernorm", bias=True), "RMSNorm": Norm()}
IMPLS = {"": "standard", " fused": "fused", " compiled": COMPILED}
"""Implementations by the suffix of their label."""


def groups(ask: Ask) -> list[Group]:
    """Both norms by every implementation side by side, at the widths of real models (on a GPU at 16k tokens)."""
    widths: tuple[int, ...]
    if ask.on_gpu:
        tokens, widths = (4096, (4096,)) if ask.quick else (16384, (1024, 2048, 4096, 8192, 16384))
    else:
        tokens, widths = (64, (256,)) if ask.quick else (2048, (512, 1024, 2048, 4096))
    passes: tuple[Pass, ...] = ("forward", "both")
    return [_group(ask, tokens, *case) for case in product(("alone", "with residual"), passes, widths)]


def _group(ask: Ask, tokens: int, what: str, direction: Pass, width: int) -> Group:
    piece = find_piece("norm") if what == "alone" else ADD_NORM
    # compiling takes seconds per candidate, on a CPU many seconds
    impls = {label: impl for label, impl in IMPLS.items() if impl != COMPILED or not ask.quick}
    entries = []
    for name, norm in NORMS.items():
        spec = model_of(name, width, mixer=heads(1, 1, 64), norm=norm)
        setting = ask.setting(spec, seq_len=tokens, direction=direction)
        entries += [Entry(label=name + label, piece=piece, setting=setting, impl=impl) for label, impl in impls.items()]
    case: dict[str, Scalar] = {
        "what": what,
        "pass": direction,
        "tokens": tokens,
        "dtype": ask.dtype,
        "hidden_size": width,
    }
    return entry_group(entries, case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    question="what does a norm cost: LayerNorm or RMSNorm, with and without the residual sum, fused or not?",
    groups=groups,
    baseline="LayerNorm",
    chart=Chart("hidden_size", "hidden size"),
)
