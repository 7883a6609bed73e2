"""The constants of DeepNorm, with which deep post-norm models train (arXiv 2203.00555)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DeepNorm", "deepnorm"]


class DeepNorm(NamedTuple):
    """The constants of DeepNorm: norm(α · x + f(x)).

    - `alpha`: the factor on the residual stream, `skip_scale` of a layer with placement "post".
    - `beta`: the factor on the first values of some matrices.
    """

    alpha: float
    beta: float


def deepnorm(layers: int) -> DeepNorm:
    """Return DeepNorm's constants for a stack of `layers` layers: α = (2·layers)^¼, β = (8·layers)^−¼.

    Source: arXiv 2203.00555, figure 2, for models with a decoder only or an encoder only.
    """
    return DeepNorm((2 * layers) ** 0.25, (8 * layers) ** -0.25)
