"""A mapping of weights as data: which tensor of a file becomes which parameter, and by which transform.

A family's table is text, one rule a line::

    ours                      theirs                    transforms
    attention.q_proj.*        self_attn.q_proj.*
    attention.q_proj.*        attn.c_attn.*             t plain.q
    ffn.experts.gate_proj     mlp.experts.{e}.w1.weight

`{i}` is the layer, `*` the rest of the name (weight or bias), the same on both sides. `{e}` on the right is every
expert (or head: every index of our first dimension), stacked. `a+b` on the right joins tensors along their first
dimension. Of several rules for one parameter, the first whose tensors the file has counts: files have more than one
form. Transforms are named below; they act from left to right (on each expert's tensor, before stacking).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention, Mixer
from llmbench.spec.model import Layer, ModelSpec


class At(NamedTuple):
    """What a transform may want to know: the model, the layer the parameter is in (None outside), its name."""

    spec: ModelSpec
    layer: Layer | None
    name: str

    @property
    def mixer(self) -> Mixer:
        """The layer's mixer."""
        assert self.layer is not None
        assert self.layer.mixer is not None
        return self.layer.mixer

    @property
    def attention(self) -> Attention:
        """The layer's mixer, which is softmax attention."""
        assert isinstance(self.mixer, Attention)
        return self.mixer

    @property
    def moe(self) -> MoE:
        """The layer's experts."""
        assert self.layer is not None
        assert isinstance(self.layer.ffn, MoE)
        return self.layer.ffn


Transform = Callable[[Tensor, At], Tensor]
TRANSFORMS: dict[str, Transform] = {}


def transform(name: str) -> Callable[[Transform], Transform]:
    """Register a transform under its name in the tables."""

    def register(function: Transform) -> Transform:
        assert name not in TRANSFORMS, f"two transforms are called {name}"
        TRANSFORMS[name] = function
        return function

    return register


class Rule(NamedTuple):
    """One line of a table. `pattern` matches our name; `theirs` are the names of the tensors that are joined."""

    pattern: re.Pattern[str]
    theirs: tuple[str, ...]
    transforms: tuple[str, ...]

    def names(self, ours: str, copies: int) -> list[list[str]] | None:
        """For each of `copies` (or once) the tensors that are joined; None where the rule is not for `ours`."""
        match = self.pattern.fullmatch(ours)
        if match is None:
            return None
        found = match.groupdict()
        names = [name.replace("{i}", found.get("i", "")).replace("*", found.get("rest", "")) for name in self.theirs]
        if not any("{e}" in name for name in names):
            return [names]
        return [[name.replace("{e}", str(expert)) for name in names] for expert in range(copies)]

    @property
    def stacked(self) -> bool:
        """Whether the experts' tensors are stacked."""
        return any("{e}" in name for name in self.theirs)


def rules(text: str, *, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """The rules of a table; `ours` and `theirs` are put before the names on each side."""
    found = []
    for line in text.strip().splitlines():
        words = line.split()
        if not words:
            continue
        assert len(words) >= 2, line
        pattern = re.escape(ours + words[0]).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>\w+)")
        sources = tuple(theirs + name for name in words[1].split("+"))
        for name in words[2:]:
            assert name in TRANSFORMS, f"no transform {name}"
        found.append(Rule(re.compile(pattern), sources, tuple(words[2:])))
    return tuple(found)


@transform("t")
def _transposed(x: Tensor, at: At) -> Tensor:
    """GPT-2's Conv1D and fused experts hold [in, out]."""
    return x if x.dim() < 2 else x.transpose(-1, -2)


def _widths(mixer: Attention) -> tuple[int, int, int]:
    """Rows of q, k and v in a fused projection."""
    kv = mixer.num_key_value_heads
    return mixer.num_attention_heads * mixer.head_dim, kv * mixer.head_dim, kv * mixer.value_dim


def _plain(which: int) -> Transform:
    """All of q, then all of k, then all of v."""

    def cut(x: Tensor, at: At) -> Tensor:
        return x.split(_widths(at.attention), dim=0)[which]

    return cut


def _grouped(which: int) -> Transform:
    """Key head by key head: the queries of its group, its key, its value. With one query a group this is the form
    of BLOOM and GPT-NeoX, head by head."""

    def cut(x: Tensor, at: At) -> Tensor:
        mixer = at.attention
        group = mixer.num_attention_heads // mixer.num_key_value_heads
        rows = x.unflatten(0, (mixer.num_key_value_heads, group + 2, mixer.head_dim))
        part = (rows[:, :group], rows[:, group : group + 1], rows[:, group + 1 :])[which]
        return part.flatten(0, 2)

    return cut


def _quartered(which: int) -> Transform:
    """CodeGen: a quarter of all heads after the other, and in each its queries, its values, its keys."""
    return lambda x, at: x.unflatten(0, (4, 3, -1))[:, which].flatten(0, 1)


def _half(which: int, dim: int) -> Transform:
    """gate and up in one, one after the other along `dim`."""
    return lambda x, at: x.chunk(2, dim=dim)[which]


def _every_second(which: int, dim: int) -> Transform:
    """gate and up in one, in turns along `dim` (gpt-oss)."""

    def cut(x: Tensor, at: At) -> Tensor:
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
def _swapped(x: Tensor, at: At) -> Tensor:
    """The two halves of each head in turn: NanoChat rotates them the other way round, and scores do not see it."""
    return x.unflatten(0, (-1, 2, at.attention.head_dim // 2)).flip(1).flatten(0, 2)


@transform("head.by.head")
def _head_by_head(x: Tensor, at: At) -> Tensor:
    """All queries and then all gates become head by head its query and its gate; the queries alone where a gate is for
    a whole head, because that has a projection of its own."""
    mixer = at.attention
    if mixer.output_gate != "elementwise":
        return x[: mixer.num_attention_heads * mixer.head_dim]
    return x.unflatten(0, (2, mixer.num_attention_heads, -1)).transpose(0, 1).flatten(0, 2)


@transform("flat")
def _flat(x: Tensor, at: At) -> Tensor:
    """A vector that a file holds as a matrix of one row."""
    return x.flatten()


@transform("by_expert")
def _by_expert(x: Tensor, at: At) -> Tensor:
    """Experts below each other in one matrix (DBRX) become a stack."""
    return x.unflatten(0, (at.moe.num_experts, -1))
