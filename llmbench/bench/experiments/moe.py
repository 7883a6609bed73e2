"""How fast is a mixture of experts with each implementation, compared with dense feed-forwards?

The implementation `loop` computes one expert after another in plain torch. `grouped` sorts the tokens and uses torch's
grouped matrix products. `fused` is the Triton kernel of llmbench. All three are compared with two dense feed-forwards:
`dense, active` is as wide as the experts that one token uses, and `dense, total` is as wide as all experts together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Chart, Column, Experiment, Group
from llmbench.bench.experiments.synthetic import ROUTINGS, Routing, choices, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces import moe as pieces
from llmbench.bench.pieces.piece import Piece
from llmbench.bench.pieces.reduce import ffn_of, with_layer
from llmbench.measure.results import Scalar
from llmbench.spec.ffn import FFN, Gated, MoE
from llmbench.spec.model import ModelSpec

__all__ = ["EXPERIMENT"]

IMPLS = {"loop": "standard", "grouped": "grouped", "fused": "fused"}
"""The implementations of a mixture, by their labels in the rows."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The widths and token counts of the mixtures.

    - `total`: the width of all experts together.
    - `usual`: the mixture that is compared with dense feed-forwards.
    - `experts`: the numbers of experts. `top_k`: the numbers of experts per token, with `many` experts.
    - `balanced`, `routed`: the mixtures in which the balance of the experts and the cost of routing are measured.
    """

    tokens: int
    hidden: int
    total: int
    usual: tuple[int, int]
    experts: tuple[int, ...]
    top_k: tuple[int, ...]
    many: int
    balanced: tuple[int, int]
    routed: tuple[int, int]

    def mixture(self, experts: int, top_k: int) -> MoE:
        """Return a mixture whose experts together have the width `total`."""
        return MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=self.total // experts)


def preset(ask: Ask) -> Shapes:
    """Return the shapes of the preset."""
    if ask.on_gpu:
        tokens, hidden, total = (4096, 2048, 16384) if ask.quick else (16384, 4096, 65536)
    else:
        tokens, hidden, total = (32, 64, 512) if ask.quick else (512, 512, 8192)
    return Shapes(
        tokens=tokens,
        hidden=hidden,
        total=total,
        usual=(8, 2),
        experts=(8,) if ask.quick else (8, 16, 32, 64, 128, 256),
        top_k=() if ask.quick else (1, 2, 4, 8),
        many=64,
        balanced=(8, 2) if ask.quick else (64, 8),
        routed=(8, 2) if ask.quick else (256, 8),
    )


def shapes_of(model: ModelSpec, shapes: Shapes) -> Shapes:
    """Return the shapes with the mixture of the model. The numbers of experts are those of `shapes` that divide the
    width of all experts, and that of the model. The numbers of experts per token are those up to twice the model's."""
    moe = ffn_of(with_layer(model, "experts", lambda layer: isinstance(layer.ffn, MoE)), MoE)
    experts, top_k = own = moe.num_experts, moe.num_experts_per_tok
    total = experts * moe.intermediate_size
    counts = {count for count in shapes.experts if total % count == 0 and count >= top_k} if shapes.top_k else set()
    return replace(
        shapes,
        hidden=model.hidden_size,
        total=total,
        usual=own,
        experts=tuple(sorted({*counts, experts})),
        top_k=tuple(k for k in shapes.top_k if k <= min(experts, 2 * top_k)),
        many=experts,
        balanced=own,
        routed=own,
    )


def groups(ask: Ask) -> list[Group]:
    """Return the groups of five comparisons.

    - A mixture in each implementation, and dense feed-forwards: one group.
    - Different numbers of experts: one group per number.
    - Different numbers of experts per token: one group per number, but none in the quick preset.
    - Different routings: one group per routing.
    - The router alone: one group.
    """
    shapes = preset(ask)
    if ask.shape.model is not None:
        shapes = shapes_of(ask.shape.model, shapes)
    return [group for tokens in ask.lengths([shapes.tokens]) for group in _groups(ask, replace(shapes, tokens=tokens))]


def _groups(ask: Ask, shapes: Shapes) -> list[Group]:
    usual = shapes.mixture(*shapes.usual)
    k = shapes.usual[1]
    all_groups = [_against_dense(ask, shapes, usual)]
    all_groups += [_sweep(ask, shapes, "by experts", shapes.mixture(count, k)) for count in shapes.experts]
    all_groups += [_sweep(ask, shapes, "by experts per token", shapes.mixture(shapes.many, k)) for k in shapes.top_k]
    all_groups += [_balance(ask, shapes, shapes.mixture(*shapes.balanced), routing) for routing in ROUTINGS]
    return [*all_groups, _routing(ask, shapes, shapes.mixture(*shapes.routed))]


def _entry(
    ask: Ask, shapes: Shapes, label: str, ffn: FFN, impl: str, piece: Piece, spec: ModelSpec | None = None
) -> Entry:
    spec = spec or model_of(label, shapes.hidden, ffn=ffn)
    setting = ask.setting(spec, seq_len=shapes.tokens)
    ops = piece.ops_of(setting)
    extra: dict[str, Scalar] = {  # The parameters of the timed piece, not of the whole model.
        "parameters": sum(op.parameters for op in ops),
        "active_parameters": sum(op.active_parameters for op in ops),
        "tokens": shapes.tokens,
    }
    return Entry(label=label, piece=piece, setting=setting, impl=impl, extra=extra)


def _mixtures(ask: Ask, shapes: Shapes, moe: MoE, piece: Piece) -> list[Entry]:
    """Return one entry per implementation of a mixture. The entries share the setting, so that they also share the
    weights."""
    spec = model_of("mixture", shapes.hidden, ffn=moe)
    first, *others = (_entry(ask, shapes, label, moe, impl, piece, spec) for label, impl in IMPLS.items())
    return [first, *(replace(entry, setting=first.setting) for entry in others)]


def _group(ask: Ask, shapes: Shapes, what: str, moe: MoE, entries: Iterable[Entry], **more: Scalar) -> Group:
    case: dict[str, Scalar] = {
        **ask.shape.case,
        "what": what,
        "tokens": shapes.tokens,
        "hidden_size": shapes.hidden,
        "experts_width": shapes.total,
        "dtype": ask.dtype,
        "experts": moe.num_experts,
        "top_k": moe.num_experts_per_tok,
        **more,
    }
    return entry_group(list(entries), case=case, pace=ask.pace)


def _against_dense(ask: Ask, shapes: Shapes, moe: MoE) -> Group:
    active = Gated(intermediate_size=moe.num_experts_per_tok * moe.intermediate_size)
    total = Gated(intermediate_size=shapes.total)
    dense = [
        _entry(ask, shapes, label, ffn, "standard", pieces.FFN)
        for label, ffn in (("dense, active", active), ("dense, total", total))
    ]
    return _group(ask, shapes, "against dense", moe, [*dense, *_mixtures(ask, shapes, moe, find_piece("moe"))])


def _sweep(ask: Ask, shapes: Shapes, what: str, moe: MoE) -> Group:
    return _group(ask, shapes, what, moe, _mixtures(ask, shapes, moe, find_piece("moe")))


def _balance(ask: Ask, shapes: Shapes, moe: MoE, routing: Routing) -> Group:
    entries = _mixtures(ask, shapes, moe, pieces.experts_piece(partial(choices, routing)))
    return _group(ask, shapes, "experts alone", moe, entries, routing=routing)


def _routing(ask: Ask, shapes: Shapes, moe: MoE) -> Group:
    routers = [
        _entry(ask, shapes, label, moe, impl, pieces.ROUTER)
        for label, impl in (("router", "standard"), ("router fused", "fused"))
    ]
    return _group(ask, shapes, "cost of routing", moe, [*routers, *_mixtures(ask, shapes, moe, find_piece("moe"))])


EXPERIMENT = Experiment(
    question="how fast is a mixture of experts with each implementation, compared with dense feed-forwards?",
    groups=groups,
    baseline="loop",
    columns=(
        Column("load", "busiest expert", "ratio"),
        Column("active_parameters", "active parameters", "count", spare=5),
        Column("parameters", "parameters", "count", spare=6),
    ),
    chart=Chart("experts", "experts"),
    model_note="the mixtures have the sizes of the model's experts, but a plain router and no shared experts",
    notes=(
        "busiest expert: the tokens of the busiest expert divided by the mean tokens per expert",
        "routing: even and skewed draw experts at random, with equal chances or with chances proportional to"
        " 1 / (number of the expert); trained uses the choices of a small model's router after 100 training steps"
        " without a balance loss; balanced uses those after training with 0.1 times the balance loss",
    ),
)
