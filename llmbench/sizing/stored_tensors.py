"""The tensors that replace the weights of an op if they are stored in a format, and their bytes.

A `Recipe` says for each matrix of the op table how it is stored. The bytes of a format are sums over the tensors that
replace the matrices. All figures can be those of one GPU of a layout, because the op table has the shapes of one GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from llmbench.sizing.dtypes import Tensors
from llmbench.sizing.lower import lower, lower_next_token_prediction
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.spec.weights.formats import Role, Storage, StoredTensor

ONE_TOKEN = Workload.prefill(1)
NEXT_TOKEN_PREDICTION = "next_token_prediction"
"""The entry of `StoredWeights.components` for the multi-token-prediction modules."""


class Recipe(Protocol):
    """Says how each weight of a model is stored."""

    @property
    def by_module(self) -> bool:
        """Whether the same op can be stored differently in two layers."""

    @property
    def without_next_token_prediction(self) -> bool:
        """Whether files of this format leave out the multi-token-prediction modules."""

    def storage(self, op: Op, layer: int | None) -> Storage | None:
        """Return how the matrices of an op are stored in one layer. None: they are not quantised.

        layer: index of the layer in its stack, or None for an op outside the layers.
        """

    def plain_bits(self, op: Op) -> int:
        """Return the bits per element of the weights of an op that are not quantised."""

    def tensors(self, op: Op, layer: int | None, *, loaded: bool = False) -> list[Tensors]:
        """Return the tensors of one instance of an op (see `stored_tensors`)."""

    def towers(self, tp: int = 1) -> list[Tensors]:
        """Return the weights of the parts for other modalities than text on one GPU."""


def role_of(op: Op) -> Role | None:
    """Return what the matrix of an op does. None: the op has no matrix, or one that no format quantises.

    No format quantises the small matrices of hyper-connections, the head weights of an indexer, and the projection of a
    multi-token-prediction module.
    """
    if op.matrix is None:
        return None
    if op.kind == "embedding":
        return "embedding"
    if op.name.endswith(("_hc.fn", ".weights_proj")) or (op.stack == "mtp" and op.name.endswith(".proj")):
        return None
    match op.component:
        case "lm_head":
            return "head"
        case "router" | "attention" | "mlp" | "experts":
            return op.component
        case "shared_experts":
            return "shared_gate" if op.name.endswith(".shared_gate") else "shared_experts"
        case "attention_extra":
            return "indexer"
        case "mixer_ssm":
            return "mixer"
        case _:
            return "other" if op.layer else "outside"


def sides(op: Op) -> tuple[int, int]:
    """Return the inputs and outputs of the matrix of an op. The rows of an embedding table are its outputs."""
    assert op.matrix is not None
    _, first, second = op.matrix
    return (second, first) if op.kind == "embedding" else (first, second)


def stored_tensors(op: Op, storage: Storage | None, plain_bits: int, *, loaded: bool = False) -> list[Tensors]:
    """Return the tensors that one instance of an op stores.

    plain_bits: bits per element of the weights that are not quantised. loaded: whether the tensors are in the memory of
        an engine, which stores some scales with more bits than the files.
    """
    plain = op.parameters + op.buffers
    tensors = []
    if storage is not None and op.owned_matrix is not None:
        copies, inputs, outputs = op.owned_matrix[0], *sides(op)
        plain -= copies * inputs * outputs
        for tensor in storage.tensors:
            numbers = copies * _numbers(tensor, inputs, outputs)
            bits = plain_bits if tensor.bits is None else tensor.bits
            bits = tensor.loaded_bits if loaded and tensor.loaded_bits is not None else bits
            tensors.append(Tensors(f"{storage.name} {tensor.name}", numbers, bits))
    if plain:
        tensors.append(Tensors("weights" if storage is None else "other weights", plain, plain_bits))
    return tensors


def _numbers(tensor: StoredTensor, inputs: int, outputs: int) -> int:
    if tensor.flat:
        return tensor.numbers * -(-inputs * outputs // tensor.flat)
    rows = -(-outputs // tensor.outputs) if tensor.outputs else 1
    columns = -(-inputs // tensor.inputs) if tensor.inputs else 1
    return tensor.numbers * rows * columns


def op_bytes(op: Op, layer: int | None, recipe: Recipe, *, loaded: bool = False) -> int:
    """Return the bytes of the weights of an op in one layer (see `stored_tensors`)."""
    if not (op.parameters or op.buffers):
        return 0
    return sum(tensor.bytes for tensor in recipe.tensors(op, layer, loaded=loaded))


def next_token_prediction_bytes(spec: ModelSpec, recipe: Recipe, layout: Layout | None = None) -> int:
    """Return the bytes of the multi-token-prediction modules in files of a format."""
    mtp, parallel = spec.next_token_prediction, layout or Layout()
    if mtp is None or mtp.files == "none" or recipe.without_next_token_prediction:
        return 0
    stored = sum(
        instances_bytes(op, recipe, loaded=False) for op in lower_next_token_prediction(spec, ONE_TOKEN, parallel)
    )
    if mtp.files == "all":
        for op in lower(spec, ONE_TOKEN, parallel):
            if op.name in ("embedding", "lm_head") and op.parameters:
                stored += mtp.count * stored_plain(op, recipe)
    return stored


def stored_plain(op: Op, recipe: Recipe) -> int:
    """Return the bytes of the weights of one instance of an op if they are not quantised."""
    return sum(tensor.bytes for tensor in stored_tensors(op, None, recipe.plain_bits(op)))


def instances_bytes(op: Op, recipe: Recipe, *, loaded: bool) -> int:
    """Return the bytes of all instances of an op."""
    if not recipe.by_module:
        return op.count * op_bytes(op, op.layers[0] if op.layers else None, recipe, loaded=loaded)
    layers: Iterable[int | None] = op.layers or (None,)
    return sum(op_bytes(op, layer, recipe, loaded=loaded) for layer in layers)
