"""How much does each activation cost in feed-forwards with equal parameter counts?

A gated feed-forward has three matrices and a plain one has two. For equal parameter counts, the gated width is two
thirds of the plain width (Shazeer, arXiv 2002.05202, section 2), rounded to a multiple of 64.
"""

from __future__ import annotations

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Experiment, Group
from llmbench.bench.experiments.synthetic import model_of
from llmbench.bench.pieces.moe import FFN as FEED_FORWARD
from llmbench.measure.results import Scalar
from llmbench.sizing.params import count_parameters
from llmbench.sizing.work import Pass
from llmbench.spec.ffn import FFN, Activation, Dense, Gated

__all__ = ["EXPERIMENT"]

PLAIN: dict[str, Activation] = {
    "ReLU": "relu",
    "ReLU²": "relu2",
    "GELU": "gelu",
    "GELU (tanh)": "gelu_tanh",
    "SiLU": "silu",
}
GATED: dict[str, Activation] = {"GLU": "sigmoid", "ReGLU": "relu", "GEGLU": "gelu", "SwiGLU": "silu"}


def shapes(hidden: int) -> dict[str, tuple[FFN, str]]:
    """Return each feed-forward and its implementation, by label. A gated feed-forward runs with `standard` and with
    `fused`."""
    width = 4 * hidden
    narrow = max(64, round(2 * width / 3 / 64) * 64)
    labelled: dict[str, tuple[FFN, str]] = {
        name: (Dense(intermediate_size=width, activation=activation), "standard") for name, activation in PLAIN.items()
    }
    for name, activation in GATED.items():
        gated = Gated(intermediate_size=narrow, activation=activation)
        labelled |= {name: (gated, "standard"), f"{name} fused": (gated, "fused")}
    return labelled


def groups(ask: Ask) -> list[Group]:
    """Return one group per width and pass. The passes are the forward pass, and the forward and backward pass
    together."""
    if ask.on_gpu:
        tokens, widths = (4096, (2048,)) if ask.quick else (8192, (2048, 4096))
    else:
        tokens, widths = (32, (192,)) if ask.quick else (512, (768,))
    passes: tuple[Pass, ...] = ("forward", "both")
    return [_group(ask, tokens, width, direction) for width in widths for direction in passes]


def _group(ask: Ask, tokens: int, hidden: int, direction: Pass) -> Group:
    entries = []
    for name, (ffn, impl) in shapes(hidden).items():
        spec = model_of(name, hidden, ffn=ffn)
        setting = ask.setting(spec, seq_len=tokens, direction=direction)
        extra = {
            "intermediate_size": ffn.intermediate_size,
            "parameters": count_parameters(spec).components["mlp"],
        }
        entries.append(Entry(label=name, piece=FEED_FORWARD, setting=setting, impl=impl, extra=extra))
    case: dict[str, Scalar] = {"pass": direction, "tokens": tokens, "dtype": ask.dtype, "hidden_size": hidden}
    return entry_group(entries, case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    question="how much does each activation cost in feed-forwards with equal parameter counts?",
    groups=groups,
    baseline="GELU",
    columns=(("intermediate_size", "intermediate", "count"), ("parameters", "parameters", "count")),
)
