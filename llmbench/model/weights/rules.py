"""Rules as text. They map the tensors in a file to the parameters of a model.

A family's table has one rule per line:

    ours                      theirs                    transforms
    attention.q_proj.*        self_attn.q_proj.*
    attention.q_proj.*        attn.c_attn.*             t plain.q
    ffn.experts.gate_proj     mlp.experts.{e}.w1.weight

`ours` is the name of a parameter, `theirs` the name of a tensor in the file. Names may contain these signs:

- `{i}`: the number of the layer.
- `*`: the last part of the name (weight or bias), which is equal on both sides.
- `{e}`: the number of an expert or of a head. The tensors of all experts or heads are stacked along the first
  dimension.
- `a+b`: the tensors a and b, joined along the first dimension.

One parameter may have several rules, because files differ. The first rule whose tensors exist in the file applies. The
transforms are defined below. They run from left to right, on each tensor before stacking.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention, Mixer
from llmbench.spec.model import Layer, ModelSpec


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


class Rule(NamedTuple):
    """One line of a table.

    - `pattern`: matches the names of parameters.
    - `theirs`: the names of the tensors in the file, which are joined.
    - `transforms`: the names of the transforms, in order.
    """

    pattern: re.Pattern[str]
    theirs: tuple[str, ...]
    transforms: tuple[str, ...]

    def names(self, ours: str, copies: int) -> list[list[str]] | None:
        """Return the names of the tensors that fill the parameter `ours`. None: the rule does not match.

        The result is a list of lists. If the rule stacks tensors, there is one inner list per expert or head. Otherwise
        there is only one inner list. The tensors in an inner list are joined.
        """
        match = self.pattern.fullmatch(ours)
        if match is None:
            return None
        parts = match.groupdict()
        names = [name.replace("{i}", parts.get("i", "")).replace("*", parts.get("rest", "")) for name in self.theirs]
        if not any("{e}" in name for name in names):
            return [names]
        return [[name.replace("{e}", str(expert)) for name in names] for expert in range(copies)]

    @property
    def stacked(self) -> bool:
        """Whether the rule stacks the tensors of experts or heads."""
        return any("{e}" in name for name in self.theirs)


def rules(text: str, *, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """Parse the rules of a table.

    - `ours`: a prefix that is added to the names of the parameters.
    - `theirs`: a prefix that is added to the names of the tensors in the file.
    """
    table = []
    for line in text.strip().splitlines():
        words = line.split()
        if not words:
            continue
        assert len(words) >= 2, line
        pattern = re.escape(ours + words[0]).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>\w+)")
        sources = tuple(theirs + name for name in words[1].split("+"))
        for name in words[2:]:
            assert name in TRANSFORMS, f"no transform {name}"
        table.append(Rule(re.compile(pattern), sources, tuple(words[2:])))
    return tuple(table)


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


@transform("by_expert")
def _by_expert(x: Tensor, target: Target) -> Tensor:
    """Split one matrix into a stack of experts. The file stores the rows of all experts one after the other (DBRX)."""
    return x.unflatten(0, (target.moe.num_experts, -1))
