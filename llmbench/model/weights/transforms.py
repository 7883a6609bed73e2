"""Transforms: they make the parameters of a model from the tensors in a file.

The tables of weight names (`llmbench.spec.weights.families`) name these transforms. They run from left to right, on
each tensor before stacking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.model.positions import sinusoids
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention, GatedDeltaNet, Mixer
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import SinusoidalPositions


class Target(NamedTuple):
    """The parameter that a rule fills.

    - `layer`: the layer that contains the parameter. None: the parameter is outside the layers.
    - `name`: the full name of the parameter.
    """

    spec: ModelSpec
    layer: Layer | None
    name: str

    @property
    def mixer(self) -> Mixer:
        """The mixer of the layer."""
        assert self.layer is not None
        assert self.layer.mixer is not None
        return self.layer.mixer

    @property
    def attention(self) -> Attention:
        """The mixer of the layer, which must be softmax attention."""
        assert isinstance(self.mixer, Attention)
        return self.mixer

    @property
    def moe(self) -> MoE:
        """The feed-forward of the layer, which must be a mixture of experts."""
        assert self.layer is not None
        assert isinstance(self.layer.ffn, MoE)
        return self.layer.ffn


Transform = Callable[[Tensor, Target], Tensor]
TRANSFORMS: dict[str, Transform] = {}


def transform(name: str) -> Callable[[Transform], Transform]:
    """Register a transform under the name that tables use."""

    def register(function: Transform) -> Transform:
        assert name not in TRANSFORMS, f"two transforms are called {name}"
        TRANSFORMS[name] = function
        return function

    return register


@transform("t")
def _transposed(x: Tensor, target: Target) -> Tensor:
    """Transpose a matrix that the file stores as [in, out]. Examples are GPT-2's Conv1D and fused experts."""
    return x if x.dim() < 2 else x.transpose(-1, -2)


def _widths(mixer: Attention) -> tuple[int, int, int]:
    """Return the number of rows of q, k and v in a fused projection."""
    kv = mixer.num_key_value_heads
    return mixer.num_attention_heads * mixer.head_dim, kv * mixer.head_dim, kv * mixer.value_dim


def _plain(which: int) -> Transform:
    """Return a transform that cuts q, k or v (`which` is 0, 1 or 2) from a fused projection.

    The projection has all rows of q, then all rows of k, then all rows of v.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        return x.split(_widths(target.attention), dim=0)[which]

    return cut


def _grouped(which: int) -> Transform:
    """Return a transform that cuts q, k or v (`which` is 0, 1 or 2) from a fused projection with one group per KV head.

    A group has the queries, the key and the value of its KV head. With one query per group, this is the order of BLOOM
    and GPT-NeoX: query, key and value of each head.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        mixer = target.attention
        group = mixer.num_attention_heads // mixer.num_key_value_heads
        rows = x.unflatten(0, (mixer.num_key_value_heads, group + 2, mixer.head_dim))
        part = (rows[:, :group], rows[:, group : group + 1], rows[:, group + 1 :])[which]
        return part.flatten(0, 2)

    return cut


def _quartered(which: int) -> Transform:
    """Return a transform that cuts q, v or k (`which` is 0, 1 or 2) from CodeGen's projection.

    The projection has four groups of heads. Each group has its queries, then its values, then its keys.
    """
    return lambda x, target: x.unflatten(0, (4, 3, -1))[:, which].flatten(0, 1)


def _half(which: int, dim: int) -> Transform:
    """Return a transform that cuts the gate or the up matrix (`which` is 0 or 1) from a tensor that contains both.

    - `dim`: the dimension along which the gate comes first and the up matrix second.
    """
    return lambda x, target: x.chunk(2, dim=dim)[which]


def _every_second(which: int, dim: int) -> Transform:
    """Return a transform that cuts the gate or the up matrix (`which` is 0 or 1) from a tensor that contains both
    (gpt-oss).

    - `dim`: the dimension along which the rows of gate and up alternate.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        return x.movedim(dim, 0)[which::2].movedim(0, dim)

    return cut


for _index, _letter in enumerate("qkv"):
    TRANSFORMS[f"plain.{_letter}"] = _plain(_index)
    TRANSFORMS[f"groups.{_letter}"] = _grouped(_index)
for _index, _letter in enumerate("qvk"):
    TRANSFORMS[f"quarters.{_letter}"] = _quartered(_index)
for _index, _name in enumerate(("first", "second")):
    TRANSFORMS[f"{_name}.half"] = _half(_index, 0)
    TRANSFORMS[f"{_name}.half.experts"] = _half(_index, 1)
    TRANSFORMS[f"{_name}.turns"] = _every_second(_index, 0)
    TRANSFORMS[f"{_name}.turns.experts"] = _every_second(_index, 1)


@transform("swap.halves")
def _swapped(x: Tensor, target: Target) -> Tensor:
    """Swap the two halves of each head.

    NanoChat rotates heads in the opposite direction. If the halves are swapped, our rotation gives equal scores.
    """
    return x.unflatten(0, (-1, 2, target.attention.head_dim // 2)).flip(1).flatten(0, 2)


@transform("head.by.head")
def _head_by_head(x: Tensor, target: Target) -> Tensor:
    """Reorder the rows of a fused projection.

    In the file, the rows of all queries come first, then the rows of all gates. In the model, the rows of a head's
    query come before the rows of its gate, head by head.

    If the model has only one gate per head, the transform returns only the queries. The gates then have their own
    projection.
    """
    mixer = target.attention
    if mixer.output_gate != "elementwise":
        return x[: mixer.num_attention_heads * mixer.head_dim]
    return x.unflatten(0, (2, mixer.num_attention_heads, -1)).transpose(0, 1).flatten(0, 2)


@transform("flat")
def _flat(x: Tensor, target: Target) -> Tensor:
    """Flatten a vector that a file stores as a matrix with one row."""
    return x.flatten()


@transform("sinusoids")
def _sinusoids(x: Tensor, target: Target) -> Tensor:
    """Compute a table of sinusoidal positions of the shape of x (Marian, Pegasus)."""
    rows, width = x.shape
    positions = torch.arange(rows, dtype=torch.float64)[None]
    return sinusoids(SinusoidalPositions(halves=True), positions, width, torch.float32)[0]


@transform("by_expert")
def _by_expert(x: Tensor, target: Target) -> Tensor:
    """Split one matrix into a stack of experts. The file stores the rows of all experts one after the other (DBRX)."""
    return x.unflatten(0, (target.moe.num_experts, -1))


def _delta(target: Target) -> GatedDeltaNet:
    assert isinstance(target.mixer, GatedDeltaNet)
    return target.mixer


def _by_key_head(which: int, *, gates: bool) -> Transform:
    """Return a transform that cuts part `which` from a fused projection of Qwen3-Next.

    The rows of the projection are ordered by key head.

    - `gates`: false for in_proj_qkvz. Each key head then has four parts: its query, its key, the values of its value
      heads, and the output gates of its value heads. True for in_proj_ba. Each key head then has two parts: the rates
      and the decays of its value heads.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        mixer = _delta(target)
        group = mixer.num_value_heads // mixer.num_key_heads
        values = group * mixer.value_head_dim
        widths = (group, group) if gates else (mixer.key_head_dim, mixer.key_head_dim, values, values)
        return x.unflatten(0, (mixer.num_key_heads, -1)).split(widths, dim=1)[which].flatten(0, 1)

    return cut


def _in_turn(which: int) -> Transform:
    """Return a transform that cuts q, k or v (`which` is 0, 1 or 2) from a fused projection of Qwen3.5.

    The projection has all queries, then all keys, then all values.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        mixer = _delta(target)
        keys = mixer.num_key_heads * mixer.key_head_dim
        return x.split((keys, keys, mixer.num_value_heads * mixer.value_head_dim), dim=0)[which]

    return cut


for _index, _letter in enumerate("qkvg"):
    TRANSFORMS[f"delta.{_letter}"] = _by_key_head(_index, gates=False)

for _index, _letter in enumerate("ba"):
    TRANSFORMS[f"delta.{_letter}"] = _by_key_head(_index, gates=True)

for _index, _letter in enumerate("qkv"):
    TRANSFORMS[f"delta.plain.{_letter}"] = _in_turn(_index)
