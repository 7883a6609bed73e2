"""σReparam: each matrix W of the layers is trained as γ · W / σ(W) (arXiv 2303.06296, section 3.2).

σ(W) is the largest singular value of W, and γ is a trained number that starts at 1. The norm of each matrix then grows
only as γ grows, which bounds the scores of attention.

It is a way to train. The trained model is a plain model: `bake` computes the matrices once and removes γ. Sizing
therefore does not count γ, one parameter for each matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from llmbench.model.decoder import Decoder

__all__ = ["bake", "reparametrise"]


class Gain(nn.Module):
    """The trained factor γ of a matrix."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=like.dtype, device=like.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return γ · weight."""
        return self.gain * weight


def reparametrise(model: Decoder, *, seed: int = 0) -> None:
    """Train each linear module of the layers as γ · W / σ(W). Embeddings, the head and experts stay as they are.

    Each forward pass in training refines an estimate of σ(W) by one step of power iteration. `seed` decides the random
    vectors from which the estimates start. The random generators of the caller keep their states.
    """
    device = model.embedding.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in model.layers.modules():
            if isinstance(module, nn.Linear) and not parametrize.is_parametrized(module):
                spectral_norm(module)
                parametrize.register_parametrization(module, "weight", Gain(module.weight))


def bake(model: Decoder) -> None:
    """Replace γ · W / σ(W) by its value, and remove γ. The model then computes the same as before in evaluation."""
    for module in model.layers.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
