"""What does a norm cost, LayerNorm or RMSNorm, alone or with the residual stream's sum, fused or not?"""

from __future__ import annotations

from itertools import product

from llmbench.bench.candidates import COMPILED, Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.measure.results import Scalar
from llmbench.sizing.work import Pass
from llmbench.spec.model import Norm

__all__ = ["EXPERIMENT"]

NORMS = {"LayerNorm": Norm(kind="layernorm", bias=True), "RMSNorm": Norm()}
WAYS = {"": "standard", " fused": "fused", " compiled": COMPILED}


def groups(ask: Ask) -> list[Group]:
    """Widths of models on a GPU at 16k tokens; each norm of each kind in every way, side by side."""
    widths: tuple[int, ...]
    if ask.on_gpu:
        tokens, widths = (4096, (4096,)) if ask.quick else (16384, (1024, 2048, 4096, 8192, 16384))
    else:
        tokens, widths = (64, (256,)) if ask.quick else (2048, (512, 1024, 2048, 4096))
    passes: tuple[Pass, ...] = ("forward", "both")
    return [_group(ask, tokens, *each) for each in product(("alone", "with residual"), passes, widths)]


def _group(ask: Ask, tokens: int, what: str, passed: Pass, width: int) -> Group:
    of = find_piece("norm") if what == "alone" else ADD_NORM
    # compiling takes seconds a rival, on a CPU many of them
    ways = {label: impl for label, impl in WAYS.items() if impl != COMPILED or not ask.quick}
    entries = []
    for name, norm in NORMS.items():
        spec = model_of(name, width, mixer=heads(1, 1, 64), norm=norm)
        setting = Setting(spec=spec, batch=1, seq_len=tokens, dtype=ask.dtype, device=ask.device, of=passed)
        entries += [Entry(label=name + label, piece=of, setting=setting, impl=impl) for label, impl in ways.items()]
    case: dict[str, Scalar] = {"what": what, "pass": passed, "tokens": tokens, "dtype": ask.dtype, "hidden_size": width}
    return entry_group(entries, experiment="norms", case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    name="norms",
    question="what does a norm cost: LayerNorm or RMSNorm, with and without the residual's sum, fused or not?",
    groups=groups,
    baseline="LayerNorm",
    chart=Chart("hidden_size", "hidden size"),
)
