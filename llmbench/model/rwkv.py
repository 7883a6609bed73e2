"""The layer of RWKV-4, whose feed-forward (channel mixing) also reads the previous token.

Dimensions: B batch, S length, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmbench.errors import UnsupportedError
from llmbench.model.ffn import DenseLayer
from llmbench.model.norm_placements import LayerState, PreNormBlock
from llmbench.model.recurrent.rwkv import mixed, shifted
from llmbench.model.recurrent.state import RecurrentState
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.spec.ffn import Dense
from llmbench.spec.mixer import RWKV
from llmbench.spec.model import Layer, ModelSpec


def mixes_channels(layer: Layer) -> bool:
    """Return whether the feed-forward of a layer is RWKV's channel mixing."""
    return isinstance(layer.ffn, Dense) and layer.ffn.channel_mixing


class ChannelMixing(DenseLayer):
    """RWKV's feed-forward: σ(receptance(x₂)) · down(act(up(x₁))). x₁ and x₂ mix a token with the token before it."""

    def __init__(self, hidden: int, ffn: Dense) -> None:
        super().__init__(hidden, ffn)
        self.time_mix_key = nn.Parameter(torch.empty(hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(hidden))
        self.receptance = nn.Linear(hidden, hidden, bias=False)

    def reset_parameters(self) -> None:
        """Mix both tokens equally."""
        with torch.no_grad():
            self.time_mix_key.fill_(0.5)
            self.time_mix_receptance.fill_(0.5)

    def mix(self, x: Tensor, step: Step, state: RecurrentState | None) -> Tensor:
        """Return the output [B, S, D] of channel mixing for x [B, S, D]."""
        before = shifted(x, step, state, 1)
        gate = torch.sigmoid(self.receptance(mixed(x, before, self.time_mix_receptance)))
        out: Tensor = gate * self(mixed(x, before, self.time_mix_key), step.implementation)
        return out


class RWKVBlock(PreNormBlock):
    """A layer with time mixing and channel mixing, each after a norm. Both store their last input in one state."""

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        if layer.placement != "pre" or not isinstance(layer.mixer, RWKV) or layer.cross_attention is not None:
            raise UnsupportedError(
                f"{spec.name}: {where}: channel_mixing is implemented in the PyTorch model only for layers with "
                'placement "pre" and an RWKV mixer'
            )

    def build_ffn(self, spec: ModelSpec, layer: Layer) -> nn.Module | None:
        assert isinstance(layer.ffn, Dense)
        return ChannelMixing(spec.hidden_size, layer.ffn)

    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read."""
        assert self.mixer_norm is not None
        assert self.ffn_norm is not None
        assert isinstance(self.ffn, ChannelMixing)
        out, shared = self.mix(self.mixer_norm(x, step.implementation), step, state, shared)
        x = self.add(x, out)
        own = None if state is None else state[RWKV.module_name]
        out = self.ffn.mix(self.ffn_norm(x, step.implementation), step, own)
        return self.add(x, step.dropped(out)), shared
