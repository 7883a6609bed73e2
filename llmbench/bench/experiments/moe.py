"""What does a mixture of experts cost, beside dense feed-forwards and by how it is computed?

`loop` computes one expert after another in plain torch, `grouped` sorts tokens and takes torch's grouped products,
`fused` is our kernel. Beside them stand dense feed-forwards as wide as what a token uses (`dense, active`) and as what
is held (`dense, total`).
"""

from __future__ import annotations

from collections.abc import Iterable

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.routing import ROUTINGS, Routing
from llmbench.bench.experiments.synthetic import model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces import moe as moe_pieces
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.measure.results import Scalar
from llmbench.spec.ffn import FFN, Gated, MoE
from llmbench.spec.model import ModelSpec

__all__ = ["EXPERIMENT"]

WAYS = {"loop": "standard", "grouped": "grouped", "fused": "fused"}


class _Shapes:
    """Widths and tokens of a preset. `total` is the width of all experts together."""

    def __init__(self, ask: Ask) -> None:
        if ask.on_gpu:
            self.tokens, self.hidden, self.total = (4096, 2048, 16384) if ask.quick else (16384, 4096, 65536)
        else:
            self.tokens, self.hidden, self.total = (32, 64, 512) if ask.quick else (512, 512, 8192)
        if ask.quick:
            self.experts: tuple[int, ...] = (8,)
            self.top_k: tuple[int, ...] = (2,)
        else:
            self.experts, self.top_k = (8, 16, 32, 64, 128, 256), (1, 2, 4, 8)

    def mixture(self, experts: int, top_k: int) -> MoE:
        """Experts that are `total` wide together."""
        return MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=self.total // experts)


def groups(ask: Ask) -> list[Group]:
    """Against dense ones; by number of experts; by experts a token; by balance; and what the router costs."""
    of = _Shapes(ask)
    usual = of.mixture(8, 2)
    found = [_against_dense(ask, of, usual)]
    found += [_sweep(ask, of, "by experts", of.mixture(count, 2)) for count in of.experts]
    found += [_sweep(ask, of, "by experts a token", of.mixture(64, k)) for k in of.top_k if not ask.quick]
    found += [_balance(ask, of, usual if ask.quick else of.mixture(64, 8), routing) for routing in ROUTINGS]
    return [*found, _routing(ask, of, usual if ask.quick else of.mixture(256, 8))]


def _entry(ask: Ask, of: _Shapes, label: str, ffn: FFN, impl: str, part: Piece, spec: ModelSpec | None = None) -> Entry:
    spec = spec or model_of(label, of.hidden, ffn=ffn)
    setting = Setting(spec=spec, batch=1, seq_len=of.tokens, dtype=ask.dtype, device=ask.device)
    ops = part.ops_of(setting)
    figures: dict[str, Scalar] = {  # of what is timed, not of the model that it stands in
        "parameters": sum(op.parameters for op in ops),
        "active_parameters": sum(op.active_parameters for op in ops),
        "tokens": of.tokens,
    }
    return Entry(label=label, piece=part, setting=setting, impl=impl, figures=figures)


def _ways(ask: Ask, of: _Shapes, moe: MoE, part: Piece) -> list[Entry]:
    """A mixture in every way, its weights made once."""
    spec = model_of("mixture", of.hidden, ffn=moe)
    first, *others = (_entry(ask, of, label, moe, impl, part, spec) for label, impl in WAYS.items())
    return [first, *(Entry(**{**vars(each), "setting": first.setting}) for each in others)]


def _group(ask: Ask, of: _Shapes, what: str, moe: MoE, entries: Iterable[Entry], **more: Scalar) -> Group:
    case: dict[str, Scalar] = {
        "what": what,
        "tokens": of.tokens,
        "hidden_size": of.hidden,
        "experts_width": of.total,
        "dtype": ask.dtype,
        "experts": moe.num_experts,
        "top_k": moe.num_experts_per_tok,
        **more,
    }
    return entry_group(list(entries), experiment="moe", case=case, pace=ask.pace)


def _against_dense(ask: Ask, of: _Shapes, moe: MoE) -> Group:
    active = Gated(intermediate_size=moe.num_experts_per_tok * moe.intermediate_size)
    total = Gated(intermediate_size=of.total)
    dense = [
        _entry(ask, of, label, ffn, "standard", moe_pieces.FFN)
        for label, ffn in (("dense, active", active), ("dense, total", total))
    ]
    return _group(ask, of, "against dense", moe, [*dense, *_ways(ask, of, moe, find_piece("moe"))])


def _sweep(ask: Ask, of: _Shapes, what: str, moe: MoE) -> Group:
    return _group(ask, of, what, moe, _ways(ask, of, moe, find_piece("moe")))


def _balance(ask: Ask, of: _Shapes, moe: MoE, routing: Routing) -> Group:
    entries = _ways(ask, of, moe, moe_pieces.experts_piece(routing))
    return _group(ask, of, "experts alone", moe, entries, routing=routing)


def _routing(ask: Ask, of: _Shapes, moe: MoE) -> Group:
    routers = [
        _entry(ask, of, label, moe, impl, moe_pieces.ROUTER)
        for label, impl in (("router", "standard"), ("router fused", "fused"))
    ]
    return _group(ask, of, "cost of routing", moe, [*routers, *_ways(ask, of, moe, find_piece("moe"))])


EXPERIMENT = Experiment(
    name="moe",
    question="what does a mixture of experts cost, beside dense feed-forwards and by how it is computed?",
    groups=groups,
    baseline="loop",
    columns=(
        ("parameters", "parameters", "count"),
        ("active_parameters", "active", "count"),
        ("load", "busiest expert", "ratio"),
    ),
    chart=Chart("experts", "experts"),
    notes=(
        "busiest expert: its tokens over those of the mean one. Choices are even or skewed (a chance of 1 / number) by "
        "lot, or trained: those of a small model's router after 100 steps of counting on, without a balance loss",
    ),
)
