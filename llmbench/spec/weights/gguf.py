"""GGUF recipes: the block type that llama.cpp's quantisation chooses for each matrix of a model.

A recipe such as Q4_K_M is one file in `specs/formats/` with a table `gguf`. Its base type holds for every matrix that
no rule names. The choices follow `llama_tensor_get_type` in llama.cpp (src/llama-quant.cpp), and the block sizes follow
ggml-common.h.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from llmbench.spec.base import Part

BlockType = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "TQ1_0", "TQ2_0",
]  # fmt: skip

BLOCKS: dict[BlockType, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "IQ4_NL": (32, 18),
    "MXFP4": (32, 17),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}
"""Elements and bytes of a block of each type."""

_FALLBACKS: dict[BlockType, BlockType] = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
}
"""The type of a matrix whose rows the blocks of its own type do not divide. If these do not either, it is F16."""

TensorRole = Literal["value", "attention_output", "down", "query", "key", "gate_up", "experts"]
"""The matrices that rules name.

`value`: the values of attention, a fused matrix of queries, keys and values, or the up-projection of latent attention.
`down`: the second matrix of a feed-forward, of experts too. `experts`: any matrix of routed experts.
"""

When = Literal[
    "first_2", "first_4", "first_16th", "first_8th", "middle", "more", "grouped_4", "experts_4", "experts_8", "imatrix",
    "no_imatrix",
]  # fmt: skip
"""Conditions on the place i of a matrix among the n matrices of its role, and on the model.

`first_8th`: i < n // 8. `middle`: n // 8 ≤ i < 7n // 8. `more`: the first and last eighth, and every third matrix
between. `grouped_4`: at least 4 query heads per key-value head. `experts_8`: exactly 8 experts per layer.
"""


class GgufRule(Part, frozen=True):
    """The type of the matrices of a role if all conditions hold."""

    role: TensorRole
    type: BlockType
    when: tuple[When, ...] = ()


class Gguf(Part, frozen=True):
    """The choices of a recipe.

    - base: type of the matrices that no rule names.
    - output: type of the head, and of a tied embedding. None: the base type.
    - embedding: type of the embedding if it is not tied. None: the base type.
    - rules: the first rule that applies to a matrix decides.
    - mixes: whether a model with 8 experts or with the shape of the 70B LLaMA gets better types for some matrices.
    - few_bits: whether the attention output of a model with 8 experts is Q5_K.
    """

    base: BlockType
    output: BlockType | None = "Q6_K"
    embedding: BlockType | None = None
    rules: tuple[GgufRule, ...] = ()
    mixes: bool = True
    few_bits: bool = False


class Place(NamedTuple):
    """Where a matrix stands: its index `at` among `total` matrices of its role, and facts about the model."""

    at: int
    total: int
    grouped: int
    experts: int
    imatrix: bool

    def holds(self, when: When) -> bool:
        """Return whether a condition of a rule holds."""
        index, eighth = self.at, self.total // 8
        last = 7 * self.total // 8
        return {
            "first_2": index < 2,
            "first_4": index < 4,
            "first_16th": index < self.total // 16,
            "first_8th": index < eighth,
            "middle": eighth <= index < last,
            "more": index < eighth or index >= last or (index - eighth) % 3 == 2,
            "grouped_4": self.grouped >= 4,
            "experts_4": self.experts >= 4,
            "experts_8": self.experts == 8,
            "imatrix": self.imatrix,
            "no_imatrix": not self.imatrix,
        }[when]


def block_type(gguf: Gguf, role: TensorRole | None, place: Place, *, type_70b: bool) -> BlockType:
    """Return the type of a matrix of the layers, before the fallback for its row length.

    type_70b: whether the model has the shape of the 70B LLaMA: 80 layers, and the family llama
        with grouped heads, or the family qwen2.
    """
    found = next(
        (rule.type for rule in gguf.rules if rule.role == role and all(map(place.holds, rule.when))), gguf.base
    )
    if not gguf.mixes:
        return found
    if role == "value" and type_70b and found in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    if place.experts == 8:
        if role in ("value", "key"):
            return "Q8_0"
        if role == "attention_output" and gguf.few_bits:
            return "Q5_K"
    return found


def fitted(chosen: BlockType, row: int) -> BlockType:
    """Return the type that can store rows of `row` elements: the chosen one, its fallback, or F16."""
    for type in (chosen, _FALLBACKS.get(chosen, chosen)):
        if row % BLOCKS[type][0] == 0:
            return type
    return "F16"
