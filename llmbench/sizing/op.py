"""The type of an op. The op table is a list of ops, and every figure is a sum over this table."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.sizing.dtypes import STATE_DTYPE, DType, bytes_of
from llmbench.spec.mixer.cache_row import CacheRow

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
"""The components of a model. Each parameter belongs to exactly one component."""

OpKind = Literal["embedding", "matmul", "attention", "scan", "conv", "norm", "elementwise", "loss"]

Role = Literal[
    "act",
    "rope",
    "gate",
    "scan",
    "core",
    "indexer_core",
    "cross_core",
    "combine",
    "shared_scale",
    "residual",
    "dropout",
]
"""The computations of ops that have no PyTorch module. The module around them computes them.

`act`: an activation function. `rope`: the rotation of queries and keys. `gate`: the gate on the output of attention.
`scan`: a recurrence. `core`: softmax(Q Kᵀ) V of a mixer. `indexer_core`: the scores of an indexer. `cross_core`:
softmax(Q Kᵀ) V of cross-attention. `combine`: the weighted sum of the outputs of experts. `shared_scale`: the gate on
the output of shared experts. `residual`: the sum of the residual stream and the output of a sublayer. `dropout`:
the dropout of the embedding.

If a module runs several of them, a trace tries them in this order.
"""


class Collective(msgspec.Struct, frozen=True):
    """The collective communication of one op.

    bytes: bytes of the whole tensor, not of the traffic on one link. For an all-reduce it is the reduced tensor, for an
        all-gather the gathered result, for a reduce-scatter the input, and for an all-to-all the data that one GPU
        sends.
    group: the parallel group whose GPUs communicate (tensor, context or expert parallelism). etp: the GPUs over which
        the matrices of each expert are split, if they are not the tensor-parallel group.
    when: the pass in which the communication occurs.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    bytes: int
    group: Literal["tp", "cp", "ep", "etp"]
    when: Literal["forward", "backward"]


class Cache(msgspec.Struct, frozen=True):
    """The cache of one layer on this GPU. All sizes are numbers of elements.

    per_token: elements per token.
    span: number of newest tokens that the cache stores. None: it stores all tokens.
    indexer_per_token: elements per token that the cache of the indexer stores.
    state, conv_state: elements per sequence of the recurrent state and of the convolution state. They do not depend on
        the sequence length.
    state_dtype: number format of the recurrent state that the config of the model states. None: it states none.
    cross_per_token: elements per encoder token that cross-attention stores.
    cross_tokens: number of encoder tokens of a sequence, if the encoder always has the same number.
    row, indexer_row, cross_row: the heads and widths of the elements per token. None: there are no such elements.
    """

    per_token: int = 0
    span: int | None = None
    indexer_per_token: int = 0
    state: int = 0
    conv_state: int = 0
    state_dtype: DType | None = None
    cross_per_token: int = 0
    cross_tokens: int | None = None
    row: CacheRow | None = None
    indexer_row: CacheRow | None = None
    cross_row: CacheRow | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes per sequence of the recurrent state."""
        return bytes_of(self.state, self.state_dtype or STATE_DTYPE)


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One module of the model, or one function between modules, on one GPU and for one workload.

    All figures are integers, except experts_met. They describe one instance of the module. The model has `count`
    instances, one in each layer of `layers`.

    name: dotted name of the module. `{}` stands for the index of the layer.
    layers: indices of the layers that contain the op. Empty: the op is outside the layers.
    layer: name of the kind of layer that contains the op.
    role: the computation of an op without a module. None: a module computes the op.
    parameters: trained elements on this GPU.
    active_parameters: trained elements that one token uses.
    matmul_elements: elements of the matrices with which one token is multiplied. A tied head counts here too.
    buffers: elements that are stored but not trained.
    shards: number of different shards into which tensor and expert parallelism split the parameters. 1: every GPU has
        all parameters of the op.
    formula: number of parameters of all shards together, written with spec field names.
    forward_flops, backward_flops: FLOPs of matrix products, convolutions and recurrences. A multiply-add counts as 2.
    recompute_flops: FLOPs that the backward pass of flash attention computes again.
    weight_bytes: bytes of the weights that the op reads.
    read_bytes, written_bytes: bytes of the activations that the op reads and writes.
    kv_read_bytes, kv_written_bytes: bytes of the cache that the op reads and writes.
    score_bytes: bytes of one matrix of scores that attention writes to memory. `read_bytes` and `written_bytes` contain
        it twice each. 0: the scores stay on the chip.
    forward_bytes: peak bytes of the forward pass of the op, inputs and outputs included.
    saved_bytes: bytes that the op saves for the backward pass, without tensors that an earlier op has saved.
    copied_bytes: bytes among saved_bytes that are copies of inputs. The original inputs exist at the same time.
    selective_bytes: bytes among saved_bytes that selective recomputation does not save (the score matrices).
    backward_bytes: bytes that only the backward pass of the op needs: gradients of inputs and outputs, and temporaries.
    matrix: (number of matrices, inputs, outputs) of the weights on this GPU. None: the weights are not matrices. A tied
        head and a layer with shared weights have the matrix, too, but another op owns it (see `owned_matrix`).
    rows: number of rows that the op multiplies with its matrices. All experts together have this number of rows.
    experts_met: expected number of different experts on this GPU that the tokens of the step select.
    scores: (width of a query, width of a value, heads, (query, key) pairs) of the scores that the op computes. The
        forward pass costs 2 × (the two widths) × heads × pairs. None: the op computes no scores of this form.
    tied: whether embedding and head share one matrix. It is true for both ops.
    frozen: whether the weights of the op are not trained, because adapters are trained in their place.
    cache: the cache that the op reads and writes. None: the op has no cache.
    collectives: the communication that the op starts.
    """

    name: str
    component: Component
    kind: OpKind
    layers: tuple[int, ...] = ()
    layer: str = ""
    stack: Literal["decoder", "encoder", "mtp"] = "decoder"
    role: Role | None = None
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
    score_bytes: int = 0
    forward_bytes: int = 0
    saved_bytes: int = 0
    copied_bytes: int = 0
    selective_bytes: int = 0
    backward_bytes: int = 0
    matrix: tuple[int, int, int] | None = None
    rows: int = 0
    experts_met: float = 0.0
    scores: tuple[int, int, int, int] | None = None
    tied: bool = False
    frozen: bool = False
    cache: Cache | None = None
    collectives: tuple[Collective, ...] = ()

    @property
    def trained(self) -> int:
        """The number of elements that the optimizer updates."""
        return 0 if self.frozen else self.parameters

    @property
    def count(self) -> int:
        """The number of instances in the model: one per layer of `layers`, or 1 if the op is outside the layers."""
        return len(self.layers) or 1

    @property
    def owned_matrix(self) -> tuple[int, int, int] | None:
        """`matrix` if its elements are among the parameters of this op, else None."""
        if self.matrix is None:
            return None
        copies, inputs, outputs = self.matrix
        return self.matrix if self.parameters >= copies * inputs * outputs else None

    def names(self) -> list[str]:
        """Return the dotted name of every instance."""
        return [self.name.replace("{}", str(index)) for index in self.layers] or [self.name]
