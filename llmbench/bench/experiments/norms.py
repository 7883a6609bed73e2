"""How fast are LayerNorm and RMSNorm, alone and with the residual sum, for each implementation?"""

from __future__ import annotations

from itertools import product

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
IMPLS = {"": "standard", " fused": "fused", " compiled": "compiled"}
"""The implementations. The key is the suffix that is added to the norm's label."""


def groups(ask: Ask) -> list[Group]:
    """Return one group per width and pass, with the norm alone and with the residual sum. A group compares LayerNorm
    and RMSNorm with every implementation. On a GPU, the full preset has 16k tokens and the widths of real models."""
    widths: tuple[int, ...]
    if ask.on_gpu:
        tokens, widths = (4096, (4096,)) if ask.quick else (16384, (1024, 2048, 4096, 8192, 16384))
    else:
        tokens, widths = (64, (256,)) if ask.quick else (2048, (512, 1024, 2048, 4096))
    if ask.shape.model is not None:
        widths = (ask.shape.model.hidden_size,)
    passes: tuple[Pass, ...] = ("forward", "both")
    cases = product(ask.lengths([tokens]), ("alone", "with residual"), passes, widths)
    return [_group(ask, *case) for case in cases]


def _group(ask: Ask, tokens: int, what: str, direction: Pass, width: int) -> Group:
    piece = find_piece("norm") if what == "alone" else ADD_NORM
    # The quick preset does not compile, because the compilation of one candidate takes seconds on a GPU and longer on a
    # CPU.
    impls = {label: impl for label, impl in IMPLS.items() if impl != "compiled" or not ask.quick}
    entries = []
    for name, norm in NORMS.items():
        spec = model_of(name, width, mixer=heads(1, 1, 64), norm=norm)
        setting = ask.setting(spec, seq_len=tokens, direction=direction)
        entries += [Entry(label=name + label, piece=piece, setting=setting, impl=impl) for label, impl in impls.items()]
    case: dict[str, Scalar] = {
        **ask.shape.case,
        "what": what,
        "pass": direction,
        "tokens": tokens,
        "dtype": ask.dtype,
        "hidden_size": width,
    }
    return entry_group(entries, case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    question="how fast are LayerNorm and RMSNorm, alone and with the residual sum, for each implementation?",
    groups=groups,
    baseline="LayerNorm",
    chart=Chart("hidden_size", "hidden size"),
)
