"""The names that Hugging Face configs have for activation functions."""

from __future__ import annotations

from typing import cast, get_args

from llmbench.spec.ffn import Activation

_OTHER_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "swish": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "relu_squared": "relu2",
}


def known_activation(name: str) -> Activation | None:
    """Return the activation function with this name in a config, or None if llmbench does not know it."""
    name = _OTHER_NAMES.get(name, name)
    return cast(Activation, name) if name in get_args(Activation) else None
