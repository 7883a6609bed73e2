"""An op with the parts of the spec around it, and the names of the ops that the rules of all profiles use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from llmbench.sizing.op import Op
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import Activation, Gated, MoE
from llmbench.spec.mixer import Attention, LatentAttention, branches
from llmbench.spec.model import Layer, ModelSpec, Stack
from llmbench.spec.position import NoPositions, Positions


class Place(NamedTuple):
    """An op of a model and a workload. `spec` has the positions of the stack of the op."""

    spec: ModelSpec
    workload: Workload
    op: Op

    @property
    def name(self) -> str:
        """The name of the op without its stack and its layer, such as `attention.q_proj`."""
        return self.op.name.removeprefix("encoder.").removeprefix("layers.{}.")

    @property
    def cross(self) -> bool:
        """Whether the op is part of cross-attention."""
        return self.name.startswith("cross_attention.")

    @property
    def stack(self) -> ModelSpec | Stack:
        """The stack of the op: the decoder or the encoder."""
        return self.spec if self.op.stack != "encoder" or self.spec.encoder is None else self.spec.encoder

    @property
    def layer(self) -> Layer:
        """The kind of layer of the op."""
        return self.stack.layers[self.op.layer]

    @property
    def whole(self) -> bool:
        """Whether the pass has all tokens of the sequences, more than one, and so needs no cache."""
        return self.workload.kv_len == self.workload.query_len > 1

    @property
    def attention(self) -> Attention | LatentAttention | None:
        """The attention of the op. None: no profile has rules for an attention with these fields."""
        mixers = (self.layer.cross_attention,) if self.cross else branches(self.layer.mixer)
        for mixer in mixers:
            if isinstance(mixer, LatentAttention) and mixer.indexer is None and mixer.qk_rope_head_dim:
                return mixer
            if isinstance(mixer, Attention) and not any(getattr(mixer, field) for field in _UNUSUAL):
                return mixer
        return None

    @property
    def positions(self) -> Positions:
        """The positions that the attention of the op applies."""
        mixer = self.attention
        return NoPositions() if self.cross or mixer is None else self.spec.positions_of(mixer)

    @property
    def moe(self) -> MoE | None:
        """The mixture of experts of the op. None: no profile has rules for a mixture with these fields."""
        moe = self.layer.ffn
        if not isinstance(moe, MoE) or any(getattr(moe, field) for field in _UNUSUAL_MOE):
            return None
        return None if moe.router.hidden_size else moe

    @property
    def activation(self) -> Activation | None:
        """The activation function of the op. None: no profile has rules for a feed-forward with these fields."""
        ffn = self.layer.ffn
        if isinstance(ffn, Gated) and (ffn.gate_scale, ffn.output_scale) != (1.0, 1.0):
            return None
        if isinstance(ffn, MoE) and ffn.beside is not None and self.name.startswith("ffn.beside."):
            return ffn.beside.activation
        return None if ffn is None else ffn.activation

    @property
    def gated(self) -> bool:
        """Whether the feed-forward of the op has a gate."""
        ffn = self.layer.ffn
        if isinstance(ffn, MoE) and self.name.startswith("ffn.beside."):
            return isinstance(ffn.beside, Gated)
        return ffn.gated if isinstance(ffn, MoE) else isinstance(ffn, Gated)


Rule = int | Callable[[Place], int | None]

_UNUSUAL = (
    "value_norm",
    "value_scale",
    "value_from_key",
    "shares_kv",
    "output_norm",
    "differential",
    "attention_experts",
    "input_size",
    "disentangled",
)
"""Fields of an attention that no profile has rules for."""

_UNUSUAL_MOE = ("capacity_factor", "expert_capacity", "zero_experts", "separate_norms")
"""Fields of a mixture of experts that no profile has rules for."""


class Profile(NamedTuple):
    """A named way to run a model.

    mark: the words that stand before a total. source: where the rules come from. assumptions: what the figures suppose.
    rules: launches of one instance, by the name of an op without its layer.
    """

    mark: str
    source: str
    assumptions: str
    rules: Mapping[str, Rule]


def named(owners: str, names: str) -> list[str]:
    """Return every combination of an owner and a name: `ffn ffn.shared` and `act` give `ffn.act`, `ffn.shared.act`."""
    return [f"{owner}.{name}" for owner in owners.split() for name in names.split()]


DENSE = "ffn ffn.shared ffn.beside"
"""The feed-forwards that every token uses."""
PRODUCTS = [
    *named("attention cross_attention", "q_proj k_proj v_proj o_proj"),
    *named("attention", "g_proj q_a_proj q_b_proj kv_a_proj kv_b_proj"),
    *named(DENSE, "gate_proj up_proj down_proj"),
    "ffn.shared_gate",
    "ffn.latent_in",
    "ffn.latent_out",
    "embedding_projection",
    "head.transform",
    "head.projection",
]
NORMS = [
    *["embedding_norm", "final_norm", "norm", "head.norm", "ffn.inner_norm", "ffn.output_norm"],
    *["mixer_norm", "cross_norm", "ffn_norm", "post_mixer_norm", "post_cross_norm", "post_ffn_norm"],
    *named("attention", "q_norm k_norm q_a_norm kv_a_norm"),
]
SUMS = ["mixer_residual", "cross_residual", "ffn_residual"]
NO_WORK = ["output", "attention.sinks", "ffn.router.correction"]
"""Ops whose numbers another op uses. They compute nothing."""
