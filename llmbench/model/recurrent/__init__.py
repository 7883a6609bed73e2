"""Mixers with a state of fixed size: state space models, linear attention, gated recurrences, short convolutions."""

from __future__ import annotations

from llmbench.model.recurrent.gated import RGLRULayer, ShortConvLayer
from llmbench.model.recurrent.linear import GatedDeltaNetLayer, KimiDeltaLayer, LightningLayer
from llmbench.model.recurrent.rwkv import RWKVLayer
from llmbench.model.recurrent.ssm import Mamba2Layer, MambaLayer
from llmbench.model.recurrent.state import RecurrentState, new_state

__all__ = [
    "GatedDeltaNetLayer",
    "KimiDeltaLayer",
    "LightningLayer",
    "Mamba2Layer",
    "MambaLayer",
    "RGLRULayer",
    "RWKVLayer",
    "RecurrentState",
    "ShortConvLayer",
    "new_state",
]
