"""Op: one row of the op table. Every figure is a sum over the table."""

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
"""The part of a model that a parameter belongs to. Components are disjoint and sum to the total."""

OpKind = Literal["embedding", "matmul", "attention", "scan", "conv", "norm", "elementwise", "loss"]


class Collective(msgspec.Struct, frozen=True):
    """Communication of one op.

    bytes: the whole tensor, not the traffic of one link: the tensor of an all-reduce, the gathered result of an
    all-gather, the input of a reduce-scatter, what one GPU sends in an all-to-all.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    bytes: int
    group: Literal["tp", "cp", "ep"]
    when: Literal["forward", "backward"]


class Cache(msgspec.Struct, frozen=True):
    """The cache of one layer on this GPU, in elements per sequence.

    per_token: elements of each token; with a `span`, of the newest `span` tokens. indexer_per_token: the indexer's
    elements of each token. state, conv_state: elements of a recurrent mixer, for any length. cross_per_token: elements
    of each encoder token.
    """

    per_token: int = 0
    span: int | None = None
    indexer_per_token: int = 0
    state: int = 0
    conv_state: int = 0
    cross_per_token: int = 0


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One module (or one function between modules) of the model, on one GPU, for one workload.

    Figures are integers, of one instance. The model has `count` instances, at `layers`.

    name: dotted; `{}` stands for the layer's index. layer: the kind of layer that the op is in.
    parameters: trained elements on this GPU; `shards` different shards make the whole (1: every GPU has a copy).
    active_parameters: those that one token uses. matmul_elements: those that one token is multiplied with (a tied head
        counts here). buffers: elements stored but not trained. formula: `parameters` of the whole, in the spec's terms.
    forward_flops, backward_flops: a multiply-add is 2; matrix products, convolutions and recurrences only.
    recompute_flops: what flash attention's backward computes again.
    weight_bytes: weights read. read_bytes, written_bytes: activations. kv_read_bytes, kv_written_bytes: cache.
    forward_bytes: memory at the highest moment of its forward, inputs and outputs included.
    saved_bytes: what it saves for backward, except tensors that an earlier op has saved. copied_bytes: the part of
        these that copies inputs, whose originals exist too. selective_bytes: the part that selective recomputation
        gives up (the score matrices).
    backward_bytes: memory that only its backward needs: gradients of its inputs and outputs, and scratch.
    matrix: (copies, inputs, outputs) of its weights on this GPU, if they are matrices. tied: the embedding is the head
        too (on both ops).
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
        """The number of instances in the model: one per layer, or one outside layers."""
        return len(self.layers) or 1

    def names(self) -> list[str]:
        """The dotted name of every instance."""
        return [self.name.replace("{}", str(index)) for index in self.layers] or [self.name]
