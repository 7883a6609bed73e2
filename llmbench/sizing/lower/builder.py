"""The formulas of the basic ops: matrix product, norm, vector of weights, elementwise function.

The other files of this folder compose the layers of a model from these ops.

Symbols in this folder: B batch size, S query length, T key length, D hidden size, N query heads, K key-value heads,
H head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.temporaries import stepwise_norm
from llmbench.sizing.op import Cache, Collective, Component, Op, OpKind
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import CacheRow
from llmbench.spec.model import ModelSpec, Norm

Split = Literal["none", "column", "row"]


class Dim(NamedTuple):
    """A width of a tensor, and the spec's field names that it is computed from."""

    size: int
    label: str


def product(*dims: Dim) -> Dim:
    """Multiply several widths, and join their names."""
    size = 1
    for dim in dims:
        size *= dim.size
    return Dim(size, " × ".join(dim.label for dim in dims))


def share(size: int, parts: int) -> int:
    """The largest of `parts` nearly equal shares of `size`."""
    return -(-size // parts)


def token_cache(b: Builder, row: CacheRow | None, indexer_row: CacheRow | None = None) -> Cache:
    """The cache of a layer that stores a cache row per token, on this GPU.

    Tensor parallelism splits the heads of a row. If there are more GPUs than heads, several GPUs have copies of one
    head. row, indexer_row: None if the layer stores no such row.
    """

    def local(row: CacheRow | None) -> int:
        if row is None:
            return 0
        return row._replace(heads=share(row.heads, min(b.layout.tp, row.heads))).elements

    span = None if row is None else row.span
    return Cache(per_token=local(row), span=span, indexer_per_token=local(indexer_row))


class Builder:
    """Collects the ops of one stack of layers, for one GPU.

    tokens: number of tokens that this GPU computes. stream_tokens: number of tokens whose residual stream this GPU
    stores, which is smaller than `tokens` under sequence parallelism.
    """

    def __init__(self, spec: ModelSpec, workload: Workload, layout: Layout, *, encoder: bool = False) -> None:
        self.spec = spec
        self.workload = workload
        self.layout = layout
        length = workload.encoder_len if encoder else workload.query_len
        self.query_len = length
        self.kv_len = length if encoder else workload.kv_len
        self.sequence_tokens = workload.batch * length
        self.tokens = share(self.sequence_tokens, layout.cp)
        self.stream_tokens = share(self.tokens, layout.tp) if layout.sp else self.tokens
        own = spec.encoder.hidden_size if spec.encoder is not None else None
        self.encoder_hidden = Dim(own or spec.hidden_size, "encoder.hidden_size" if own else "hidden_size")
        self.hidden = self.encoder_hidden if encoder else Dim(spec.hidden_size, "hidden_size")
        self.stack: Literal["decoder", "encoder", "mtp"] = "encoder" if encoder else "decoder"
        self.fused = workload.kernels == "fused"
        self.prefix = ""
        self.layer = ""
        self.layers: tuple[int, ...] = ()
        self.ops: list[Op] = []

    def at(self, prefix: str, layer: str, layers: Iterable[int]) -> None:
        """Set the name prefix, the kind of layer and the layer indices of the ops that are added from now on."""
        self.prefix, self.layer, self.layers = prefix, layer, tuple(layers)

    @contextmanager
    def only(self, layers: tuple[int, ...]) -> Iterator[None]:
        """Set other layer indices for the ops that are added inside the `with` block."""
        every, self.layers = self.layers, layers
        try:
            yield
        finally:
            self.layers = every

    def act(self, elements: int) -> int:
        """Bytes of `elements` activations."""
        return bytes_of(elements, self.workload.activation_dtype)

    def add(self, name: str, component: Component, kind: OpKind, **costs: Any) -> None:
        """Append an op with the current prefix and layers.

        By default, the forward pass of the op needs the memory of its inputs and outputs, and the backward pass needs
        the memory of their gradients.
        """
        moved = costs.get("read_bytes", 0) + costs.get("written_bytes", 0) + costs.get("kv_read_bytes", 0)
        costs.setdefault("forward_bytes", moved)
        costs.setdefault("backward_bytes", costs.get("read_bytes", 0) + costs.get("written_bytes", 0))
        self.ops.append(
            Op(
                name=self.prefix + name,
                component=component,
                kind=kind,
                layers=self.layers,
                layer=self.layer,
                stack=self.stack,
                **costs,
            )
        )

    def linear(
        self,
        name: str,
        component: Component,
        inputs: Dim,
        outputs: Dim,
        *,
        bias: bool = False,
        split: Split = "none",
        shards: int | None = None,
        tokens: int | None = None,
        saves_input: bool = True,
        also_saved_bytes: int = 0,
        tied: bool = False,
        gathers: bool = False,
    ) -> None:
        """Add a matrix product with inputs × outputs weights, and optionally a bias.

        It costs 2 FLOPs per weight and token. The backward pass costs twice as much: one product for the gradient of
        the input, one for that of the weights.

        split: "column" gives each GPU a share of the outputs. "row" gives each GPU a share of the inputs; the outputs
            are then summed over the group, and every GPU has the whole bias.
        shards: number of GPUs that split the weights; None: the whole tensor-parallel group.
        tokens: number of tokens; None: all tokens of this GPU.
        saves_input: the op saves its input for the backward pass. False: another op saves the same tensor.
        also_saved_bytes: bytes of other tensors that the module saves.
        gathers: this is the first product of a tensor-parallel region. With sp it gathers the sequence, and the
            gradient of its input is reduced over the group.
        tied: the weights belong to another op.
        """
        shards = self.layout.tp if shards is None else shards
        tokens = self.tokens if tokens is None else tokens
        inside = share(inputs.size, shards) if split == "row" else inputs.size
        outside = share(outputs.size, shards) if split == "column" else outputs.size
        weights = inside * outside
        own = (0 if tied else weights) + (outside if bias else 0)
        formula = "" if tied else f"{inputs.label} × {outputs.label}"
        if bias:
            formula = f"{formula} + {outputs.label}" if formula else outputs.label
        flops = 2 * tokens * weights
        # With sequence parallelism, Megatron saves only this GPU's part of the input and gathers the rest again in the
        # backward pass. Plain torch (DTensor) saves the gathered input.
        kept = tokens * inside
        gathered = 0
        if gathers and self.layout.sp and self.fused:
            kept, gathered = share(kept, self.layout.tp), kept
        self.add(
            name,
            component,
            "matmul",
            parameters=own,
            active_parameters=own,
            matmul_elements=weights,
            tied=tied,
            matrix=None if tied else (1, inside, outside),
            shards=1 if split == "none" else shards,
            formula=formula,
            forward_flops=flops,
            backward_flops=2 * flops,
            weight_bytes=bytes_of(weights + (outside if bias else 0), self.workload.weight_dtype),
            read_bytes=self.act(tokens * inside),
            written_bytes=self.act(tokens * outside),
            saved_bytes=(self.act(kept) if saves_input else 0) + also_saved_bytes,
            backward_bytes=self.act(tokens * (inside + outside) + gathered),
            collectives=self._collectives(split, tokens, inputs.size, outputs.size, gathers),
        )

    def _collectives(
        self, split: Split, tokens: int, inputs: int, outputs: int, gathers: bool
    ) -> tuple[Collective, ...]:
        if self.layout.tp == 1:
            return ()
        if split == "row":
            moved = self.act(tokens * outputs)
            if self.layout.sp:
                return (
                    Collective("reduce_scatter", moved, "tp", "forward"),
                    Collective("all_gather", moved, "tp", "backward"),
                )
            return (Collective("all_reduce", moved, "tp", "forward"),)
        if gathers:
            moved = self.act(tokens * inputs)
            if self.layout.sp:
                return (
                    Collective("all_gather", moved, "tp", "forward"),
                    Collective("all_gather", moved, "tp", "backward"),
                    Collective("reduce_scatter", moved, "tp", "backward"),
                )
            return (Collective("all_reduce", moved, "tp", "backward"),)
        return ()

    def norm(
        self,
        name: str,
        component: Component,
        width: Dim,
        norm: Norm,
        *,
        rows: int | None = None,
        weight_width: Dim | None = None,
        shards: int = 1,
        saves_input: bool = True,
    ) -> None:
        """Add a norm of `rows` rows with `width` elements each. Default: one row per token of the residual stream.

        It saves its input and one (RMSNorm) or two (LayerNorm) fp32 statistics per row. weight_width: width of the
        weight if it is not `width` (each head has its own weight). Plain torch then multiplies with the weight in a
        separate step, which saves the normalised values too. `stepwise_norm` gives the temporaries of an RMSNorm that
        is computed in steps.
        """
        rows = self.stream_tokens if rows is None else rows
        weight = width if weight_width is None else weight_width
        vectors = int(norm.weight) + int(norm.bias)
        parameters = vectors * share(weight.size, shards)
        data = self.act(rows * width.size)
        saved = 4 * rows * (2 if norm.kind == "layernorm" else 1) + (data if saves_input else 0)
        if weight.size != width.size and norm.weight and not self.fused:
            saved += data
        temporary: dict[str, int] = {}
        offset = norm.unit_offset and norm.weight
        if norm.kind == "rmsnorm" and not self.fused and (offset or self.workload.on_cpu):
            step = stepwise_norm(rows * width.size, data, weighted=norm.weight, keeps=not offset)
            saved += step.saved_bytes
            temporary = {"forward_bytes": step.forward_bytes, "backward_bytes": step.backward_bytes}
        self.add(
            name,
            component,
            "norm",
            parameters=parameters,
            active_parameters=parameters,
            shards=shards,
            formula="" if not vectors else (weight.label if vectors == 1 else f"2 × {weight.label}"),
            weight_bytes=bytes_of(parameters, self.workload.weight_dtype),
            read_bytes=data,
            written_bytes=data,
            saved_bytes=saved,
            **temporary,
        )

    def vector(
        self,
        name: str,
        component: Component,
        width: Dim,
        *,
        shards: int = 1,
        buffer: bool = False,
        saved_bytes: int = 0,
    ) -> None:
        """Add trained elements that no matrix product uses (sinks, decays, gates). buffer: they are not trained."""
        local = share(width.size, shards)
        if buffer:
            self.add(name, component, "elementwise", buffers=local, shards=shards)
            return
        self.add(
            name,
            component,
            "elementwise",
            parameters=local,
            active_parameters=local,
            shards=shards,
            formula=width.label,
            weight_bytes=bytes_of(local, self.workload.weight_dtype),
            saved_bytes=saved_bytes,
        )

    def elementwise(
        self,
        name: str,
        component: Component,
        *,
        reads: int,
        writes: int,
        saves: int = 0,
        saved_bytes: int = 0,
        **temporary: int,
    ) -> None:
        """Add an elementwise function.

        reads, writes, saves: numbers of elements in the activations' format. saved_bytes: bytes saved in other formats.
        temporary: forward_bytes and backward_bytes, if the function is computed in several steps.
        """
        self.add(
            name,
            component,
            "elementwise",
            read_bytes=self.act(reads),
            written_bytes=self.act(writes),
            saved_bytes=self.act(saves) + saved_bytes,
            **temporary,
        )

    def residual(self, name: str) -> None:
        """Add the sum of a sublayer's output and the residual stream. With dropout, it saves a mask of one byte per
        element."""
        elements = self.stream_tokens * self.hidden.size
        self.elementwise(
            name,
            "other",
            reads=2 * elements,
            writes=elements,
            saved_bytes=elements if self.workload.dropout else 0,
        )
