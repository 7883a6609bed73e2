"""The first values of the weights of a model."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llmbench.errors import UnsupportedError
from llmbench.model.decoder import Decoder
from llmbench.spec.deepnorm import deepnorm
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec

__all__ = ["Initialisation", "initialise", "is_matrix"]

Initialisation = Literal["gpt2", "scaled", "xavier", "vaswani", "deepnorm", "empty"]
"""How the weight matrices and embedding tables get their first values.

- gpt2: normal distribution with standard deviation 0.02.
- scaled: like gpt2, but the standard deviation of projections into the residual stream is divided by sqrt(2·layers)
  (GPT-2's paper, section 2.3).
- xavier: uniform distribution within ±sqrt(6 / (inputs + outputs)), also for tables.
- vaswani: matrices like xavier, tables with a normal distribution of standard deviation 1/sqrt(width) (tensor2tensor,
  the code of the original Transformer).
- deepnorm: normal distribution with standard deviation gain · sqrt(2 / (inputs + outputs)). The gain is β of `deepnorm`
  for values, outputs of attention and feed-forwards, else 1. Tables are like those of vaswani (arXiv 2203.00555).
- empty: no values. The memory stays uninitialised.
"""

_INTO_RESIDUAL = ("o_proj", "down_proj", "out_proj")
"""Projections whose output is added to the residual stream."""

_SMALLER_IN_DEEPNORM = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections whose first values DeepNorm multiplies by β."""

_TABLES = ("embedding.weight", "position_embedding.weight", "token_type_embedding.weight")


def initialise(model: Decoder, *, init: Initialisation, seed: int = 0) -> None:
    """Fill a model with random weights. Matrices and tables follow `init`. Biases and other vectors become zero.

    Afterwards, each llmbench module with a method `reset_parameters` (norms, decays) sets its own parameters. Raises
    UnsupportedError if DeepNorm's paper does not say how to initialise the model.
    """
    if init == "empty":
        return
    if init == "deepnorm":
        _refuse_deepnorm(model.spec)
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if id(tensor) in done or not tensor.is_floating_point():
                continue
            done.add(id(tensor))
            if is_matrix(name, tensor):
                _fill(tensor, name, init, model.spec.num_hidden_layers, generator)
            else:
                tensor.zero_()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None and type(module).__module__.startswith("llmbench."):
                reset()


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Return whether a parameter is a matrix, a table or a stack of them, and not a bias or another vector.

    `name`: its name in the model. The biases of all experts of a layer are one tensor [E, outputs], but no matrix. A
    table of relative positions is a matrix, although its values are added to scores.
    """
    return tensor.dim() >= 2 and (not name.endswith("_bias") or "relative" in name)


def _fill(tensor: Tensor, name: str, init: Initialisation, layers: int, generator: torch.Generator) -> None:
    """Fill a matrix, a stack of matrices or a table with random values."""
    if init in ("gpt2", "scaled"):
        smaller = init == "scaled" and any(part in name for part in _INTO_RESIDUAL)
        tensor.normal_(0.0, 0.02 / math.sqrt(2 * layers) if smaller else 0.02, generator=generator)
    elif init != "xavier" and name.endswith(_TABLES):
        tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
    elif init == "deepnorm":
        gain = deepnorm(layers).beta if any(part in name for part in _SMALLER_IN_DEEPNORM) else 1.0
        tensor.normal_(0.0, gain * math.sqrt(2.0 / (tensor.shape[-1] + tensor.shape[-2])), generator=generator)
    else:
        bound = math.sqrt(6.0 / (tensor.shape[-1] + tensor.shape[-2]))
        tensor.uniform_(-bound, bound, generator=generator)


def _refuse_deepnorm(spec: ModelSpec) -> None:
    if spec.encoder is not None:
        raise UnsupportedError(
            f'{spec.name}: init "deepnorm" is not implemented for encoder-decoders', hint="use vaswani"
        )
    other = next((mixer for mixer in spec.mixers if not isinstance(mixer, Attention)), None)
    if other is not None:
        raise UnsupportedError(f'{spec.name}: init "deepnorm" is not defined for {other.label}', hint="use vaswani")
