"""The type of an op, which is one row of the op table. Every figure is a sum over the table."""

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
"""The component of a model that a parameter belongs to. Components are disjoint, and their counts add up to the total.
"""

OpKind = Literal["embedding", "matmul", "attention", "scan", "conv", "norm", "elementwise", "loss"]


class Collective(msgspec.Struct, frozen=True):
    """Collective communication of one op.

    bytes: size of the whole tensor, not the traffic of one link. This is the tensor of an all-reduce, the gathered
    result of an all-gather, the input of a reduce-scatter, or the data that one GPU sends in an all-to-all.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    bytes: int
    group: Literal["tp", "cp", "ep"]
    when: Literal["forward", "backward"]


class Cache(msgspec.Struct, frozen=True):
    """The cache that one layer stores on this GPU, in elements.

    per_token: elements per token. span: the cache stores only the newest `span` tokens; None: it stores all.
    indexer_per_token: elements per token that the indexer stores.
    state, conv_state: elements per sequence of the recurrent and of the convolution state, at any length.
    cross_per_token: elements per encoder token that cross-attention stores.
    """

    per_token: int = 0
    span: int | None = None
    indexer_per_token: int = 0
    state: int = 0
    conv_state: int = 0
    cross_per_token: int = 0


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One module of the model (or one function between modules), on one GPU, for one workload.

    All figures are integers and describe one instance of the module. The model has `count` instances, one in each of
    `layers`.

    name: dotted name; `{}` stands for the layer's index.
    layer: the kind of layer that contains the op.
    parameters: trained elements on this GPU. shards: number of different shards that make up the whole; 1 means that
        every GPU has a copy.
    active_parameters: parameters that one token uses.
    matmul_elements: elements of the matrices that one token is multiplied with. A tied head counts here.
    buffers: elements that are stored but not trained.
    formula: the number of parameters of the whole, written with the spec's field names.
    forward_flops, backward_flops: FLOPs of matrix products, convolutions and recurrences. A multiply-add is 2.
    recompute_flops: FLOPs that the backward pass of flash attention computes again.
    weight_bytes: bytes of weights that the op reads.
    read_bytes, written_bytes: bytes of activations that the op reads and writes.
    kv_read_bytes, kv_written_bytes: bytes of the cache that the op reads and writes.
    forward_bytes: the most memory that the forward pass of the op needs at once, inputs and outputs included.
    saved_bytes: bytes that the op saves for the backward pass, without tensors that an earlier op has saved.
    copied_bytes: bytes among saved_bytes that are copies of inputs, which exist a second time.
    selective_bytes: bytes among saved_bytes that selective recomputation does not save (the score matrices).
    backward_bytes: memory that only the backward pass of the op needs: gradients of inputs and outputs, and scratch.
    matrix: (copies, inputs, outputs) of the weights on this GPU, if they are matrices.
    tied: the embedding also serves as the head. It is true for both ops.
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
        """The number of instances in the model: one per layer, or one for an op outside the layers."""
        return len(self.layers) or 1

    def names(self) -> list[str]:
        """The dotted name of every instance."""
        return [self.name.replace("{}", str(index)) for index in self.layers] or [self.name]
