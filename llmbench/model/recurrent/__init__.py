"""Mixers with a fixed state as modules: state spaces, linear attention, gated recurrences, short convolutions.

`NAMES` says what each kind is called in its layer; `recurrent_layer` makes its module, `new_state` what it keeps.
"""

from __future__ import annotations

from torch import nn

from llmbench.model.recurrent.gated import RGLRULayer, ShortConvLayer
from llmbench.model.recurrent.linear import GatedDeltaNetLayer, LightningLayer
from llmbench.model.recurrent.ssm import Mamba2Layer, MambaLayer
from llmbench.model.recurrent.state import Built, RecurrentState, new_state
from llmbench.spec.mixer import RGLRU, GatedDeltaNet, LightningAttention, Mamba, Mamba2, ShortConv
from llmbench.spec.model import ModelSpec

__all__ = ["NAMES", "Built", "RecurrentState", "new_state", "recurrent_layer"]

NAMES: dict[type, str] = {
    Mamba: "mamba",
    Mamba2: "mamba",
    GatedDeltaNet: "delta_net",
    LightningAttention: "linear_attention",
    RGLRU: "recurrent",
    ShortConv: "conv",
}
"""What each kind is called in its layer, as in the sizing table."""


def recurrent_layer(spec: ModelSpec, mixer: Built, *, index: int) -> nn.Module:
    """The module of a mixer in layer `index`."""
    if isinstance(mixer, Mamba):
        return MambaLayer(spec, mixer)
    if isinstance(mixer, Mamba2):
        return Mamba2Layer(spec, mixer)
    if isinstance(mixer, GatedDeltaNet):
        return GatedDeltaNetLayer(spec, mixer)
    if isinstance(mixer, LightningAttention):
        return LightningLayer(spec, mixer, index=index)
    if isinstance(mixer, RGLRU):
        return RGLRULayer(spec, mixer)
    return ShortConvLayer(spec, mixer)
