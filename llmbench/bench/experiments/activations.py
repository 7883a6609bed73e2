"""How much does each activation cost in feed-forwards with equal parameter counts?

A gated feed-forward has three matrices and a plain one has two. For equal parameter counts, the gated width is two
thirds of the plain width (Shazeer, arXiv 2002.05202, section 2), rounded to a multiple of 64.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Column, Experiment, Group
from llmbench.bench.experiments.synthetic import model_of
from llmbench.bench.pieces.moe import FFN as FEED_FORWARD
from llmbench.bench.pieces.reduce import layer_of, with_layer
from llmbench.measure.results import Scalar
from llmbench.sizing.params import count_parameters
from llmbench.sizing.work import Pass
from llmbench.spec.ffn import FFN, Activation, Dense, Gated
from llmbench.spec.model import ModelSpec

__all__ = ["EXPERIMENT"]

PLAIN: dict[str, Activation] = {
    "ReLU": "relu",
    "ReLU²": "relu2",
    "GELU": "gelu",
    "GELU (tanh)": "gelu_tanh",
    "SiLU": "silu",
}
GATED: dict[str, Activation] = {"GLU": "sigmoid", "ReGLU": "relu", "GEGLU": "gelu", "SwiGLU": "silu"}


class Widths(NamedTuple):
    """The widths of a feed-forward: its input, and the inner width of a plain and of a gated feed-forward."""

    hidden: int
    plain: int
    gated: int


def equal_widths(hidden: int) -> Widths:
    """Return the widths of feed-forwards with equal parameter counts. A plain one is 4 × hidden wide."""
    return Widths(hidden, 4 * hidden, max(64, round(8 * hidden / 3 / 64) * 64))


def widths_of(spec: ModelSpec) -> Widths:
    """Return the widths of the model's first dense or gated feed-forward, and of one of the other kind with equal
    parameters. Raises LLMBenchError if the model has no such feed-forward."""
    what = "dense or gated feed-forward"
    ffn = layer_of(with_layer(spec, what, lambda layer: isinstance(layer.ffn, Dense | Gated))).ffn
    assert ffn is not None
    width = ffn.intermediate_size
    if isinstance(ffn, Gated):
        return Widths(spec.hidden_size, max(1, round(3 * width / 2)), width)
    return Widths(spec.hidden_size, width, max(1, round(2 * width / 3)))


def shapes(widths: Widths) -> dict[str, tuple[FFN, str]]:
    """Return each feed-forward and its implementation, by label. A gated feed-forward runs with `standard` and with
    `fused`."""
    labelled: dict[str, tuple[FFN, str]] = {
        name: (Dense(intermediate_size=widths.plain, activation=activation), "standard")
        for name, activation in PLAIN.items()
    }
    for name, activation in GATED.items():
        gated = Gated(intermediate_size=widths.gated, activation=activation)
        labelled |= {name: (gated, "standard"), f"{name} fused": (gated, "fused")}
    return labelled


def groups(ask: Ask) -> list[Group]:
    """Return one group per width and pass. The passes are the forward pass, and the forward and backward pass
    together."""
    if ask.on_gpu:
        tokens, widths = (4096, (2048,)) if ask.quick else (8192, (2048, 4096))
    else:
        tokens, widths = (32, (192,)) if ask.quick else (512, (768,))
    all_widths = [equal_widths(width) for width in widths]
    if ask.shape.model is not None:
        all_widths = [widths_of(ask.shape.model)]
    passes: tuple[Pass, ...] = ("forward", "both")
    return [_group(ask, *case) for case in product(ask.lengths([tokens]), all_widths, passes)]


def _group(ask: Ask, tokens: int, widths: Widths, direction: Pass) -> Group:
    entries = []
    for name, (ffn, impl) in shapes(widths).items():
        spec = model_of(name, widths.hidden, ffn=ffn)
        setting = ask.setting(spec, seq_len=tokens, direction=direction)
        extra = {
            "intermediate_size": ffn.intermediate_size,
            "parameters": count_parameters(spec).components["mlp"],
        }
        entries.append(Entry(label=name, piece=FEED_FORWARD, setting=setting, impl=impl, extra=extra))
    case: dict[str, Scalar] = {
        **ask.shape.case,
        "pass": direction,
        "tokens": tokens,
        "dtype": ask.dtype,
        "hidden_size": widths.hidden,
    }
    if ask.shape.model is not None:
        case["intermediate_size"] = widths.gated
    return entry_group(entries, case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    question="how much does each activation cost in feed-forwards with equal parameter counts?",
    groups=groups,
    baseline="GELU",
    columns=(Column("intermediate_size", "width", "count", spare=5), Column("parameters", "parameters", "count")),
)
