"""Op: one row of the table that every figure is a sum over."""

from __future__ import annotations

from typing import Literal

import msgspec

Component = Literal[
    "embedding",
    "position_embedding",
    "token_type_embedding",
    "lm_head",
    "attention",
    "attention_norms",
    "attention_extra",
    "mixer_ssm",
    "mlp",
    "experts",
    "shared_experts",
    "router",
    "norms",
    "other",
]
"""What a parameter belongs to; disjoint, so that components sum to the total."""

OpKind = Literal["embedding", "matmul", "attention", "scan", "conv", "norm", "elementwise", "loss"]


class Collective(msgspec.Struct, frozen=True):
    """Communication of one op. `bytes` is the whole tensor that the group holds or reduces, not what one link carries:
    an all-reduce of a tensor, the gathered result of an all-gather, the input of a reduce-scatter, what one GPU
    sends in an all-to-all."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    bytes: int
    group: Literal["tp", "cp", "ep"]
    when: Literal["forward", "backward"]


class Cache(msgspec.Struct, frozen=True):
    """What one layer keeps between steps, in elements a sequence; on this GPU.

    per_token: of every token, up to `span` tokens where a window bounds it. indexer_per_token: DSA's keys, beside.
    state, conv_state: of a recurrent mixer, whatever the length. cross_per_token: of every encoder token.
    """

    per_token: int = 0
    span: int | None = None
    indexer_per_token: int = 0
    state: int = 0
    conv_state: int = 0
    cross_per_token: int = 0


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One module (or one function between modules) of the model, on one GPU, for one workload.

    Figures are of one instance; the model has `count` of them, at `layers`. All are integers.

    name: dotted, `{}` stands for the layer's index. layer: the kind of layer it stands in.
    parameters: trained elements held here; `shards` different shards make the whole (1: every GPU has a copy).
    active_parameters: those a token uses. matmul_elements: those it is multiplied with (a tied head counts here).
    buffers: stored, not trained. formula: `parameters` of the whole, in the spec's terms.
    forward_flops, backward_flops: a multiply-add is 2; matrix products, convolutions and recurrences only.
    recompute_flops: what flash attention's backward computes again.
    weight_bytes: weights read. read_bytes, written_bytes: activations. kv_read_bytes, kv_written_bytes: cache.
    forward_bytes: held at the fullest moment of its forward, what it reads and writes included.
    saved_bytes: what backward needs of it, beyond what an earlier op has saved. copied_bytes: the part of it that
    copies what came in, which is held by what it came from, too. selective_bytes: the part of it that
    selective recomputation gives up (the score matrices). backward_bytes: held only while its backward runs:
    gradients of what came in and went out, and scratch. matrix: (copies, inputs, outputs) of its weights here, where
    they are matrices. tied: the embedding serves as the head too (on both ops).
    """

    name: str
    component: Component
    kind: OpKind
    layers: tuple[int, ...] = ()
    layer: str = ""
    stack: Literal["decoder", "encoder", "mtp"] = "decoder"
    parameters: int = 0
    active_parameters: int = 0
    matmul_elements: int = 0
    buffers: int = 0
    shards: int = 1
    formula: str = ""
    forward_flops: int = 0
    backward_flops: int = 0
    recompute_flops: int = 0
    weight_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    kv_read_bytes: int = 0
    kv_written_bytes: int = 0
    forward_bytes: int = 0
    saved_bytes: int = 0
    copied_bytes: int = 0
    selective_bytes: int = 0
    backward_bytes: int = 0
    matrix: tuple[int, int, int] | None = None
    tied: bool = False
    cache: Cache | None = None
    collectives: tuple[Collective, ...] = ()

    @property
    def count(self) -> int:
        """How many instances the model has: one a layer, or one."""
        return len(self.layers) or 1

    def names(self) -> list[str]:
        """The dotted name of every instance."""
        return [self.name.replace("{}", str(index)) for index in self.layers] or [self.name]
