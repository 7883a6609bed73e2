"""The formulas of the basic ops: matrix product, norm, weight vector, elementwise function.

The other files of this folder build the layers of a model from these basic ops. They use these symbols: B batch size, S
query length, T key length, D hidden size, N query heads, K key-value heads, H head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.temporaries import stepwise_norm
from llmbench.sizing.op import Cache, Collective, Component, Op, OpKind, Role
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import CacheRow
from llmbench.spec.model import ModelSpec, Norm

Split = Literal["none", "column", "row"]


class Dim(NamedTuple):
    """The width of a tensor, and its formula.

    size: number of elements. label: the spec field names from which the size is computed.
    """

    size: int
    label: str


def product(*dims: Dim) -> Dim:
    """Return the product of several widths. Its label joins their labels."""
    size = 1
    for dim in dims:
        size *= dim.size
    return Dim(size, " × ".join(dim.label for dim in dims))


def share(size: int, parts: int) -> int:
    """Return the largest share if `size` is divided into `parts` nearly equal shares."""
    return -(-size // parts)


def token_cache(b: Builder, row: CacheRow | None, indexer_row: CacheRow | None = None) -> Cache:
    """Return the cache of a layer that stores one cache row per token, on this GPU.

    Tensor parallelism splits the heads of a row over GPUs. If there are more GPUs than heads, several GPUs have a copy
    of one head.

    row, indexer_row: cache rows of the layer and of its indexer. None: the layer (or the indexer) caches nothing.
    """

    row, indexer_row = local_row(b, row), local_row(b, indexer_row)
    return Cache(
        per_token=0 if row is None else row.elements,
        span=None if row is None else row.span,
        indexer_per_token=0 if indexer_row is None else indexer_row.elements,
        row=row,
        indexer_row=indexer_row,
    )


def local_row(b: Builder, row: CacheRow | None) -> CacheRow | None:
    """Return the part of a cache row that one GPU stores."""
    return None if row is None else row._replace(heads=share(row.heads, min(b.layout.tp, row.heads)))


class Builder:
    """Collects the ops of one stack of layers, for one GPU.

    tokens: number of tokens that this GPU computes.
    stream_tokens: number of tokens whose residual stream this GPU stores. With sequence parallelism, it is less than
        `tokens`.
    cached: number of tokens per sequence whose cache the step reads: in decoding all, the new token included, and in a
        prefill those before its chunk.
    """

    def __init__(self, spec: ModelSpec, workload: Workload, layout: Layout, *, encoder: bool = False) -> None:
        self.spec = spec
        self.workload = workload
        self.layout = layout
        length = workload.encoder_len if encoder else workload.query_len
        self.query_len = length
        self.kv_len = length if encoder else workload.kv_len
        earlier = self.kv_len - length
        self.cached = {"prefill": earlier, "decode": self.kv_len, "train": 0}[workload.phase]
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
        """Set the name prefix, the kind of layer and the layer indices of all ops that are added later."""
        self.prefix, self.layer, self.layers = prefix, layer, tuple(layers)

    @contextmanager
    def only(self, layers: tuple[int, ...]) -> Iterator[None]:
        """Use other layer indices for the ops that are added inside the `with` block."""
        every, self.layers = self.layers, layers
        try:
            yield
        finally:
            self.layers = every

    def act(self, elements: int) -> int:
        """Return the bytes of `elements` activations."""
        return bytes_of(elements, self.workload.activation_dtype)

    def saved_input(self, elements: int, component: Component = "experts") -> int:
        """Return the bytes of the saved input of a matrix product. Only products in layers may compute in fp8."""
        fp8 = self.workload.fp8 and self.layer and component != "router"
        return bytes_of(elements, "fp8") if fp8 else self.act(elements)

    def add(self, name: str, component: Component, kind: OpKind, **costs: Any) -> None:
        """Append an op with the current name prefix and layer indices.

        costs: other fields of the op. By default, forward_bytes is the memory of inputs and outputs, and backward_bytes
            is the memory of their gradients.
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
        **memory: int,
    ) -> None:
        """Add a matrix product with inputs × outputs weights, and optionally a bias.

        The forward pass costs 2 FLOPs per weight and token. The backward pass costs twice as much. It has two products,
        one for the gradient of the input and one for the gradient of the weights.

        split: how tensor parallelism splits the matrix. "column" gives each GPU a share of the outputs. "row" gives
            each GPU a share of the inputs. The outputs are then summed over the group, and every GPU has the whole
            bias.
        shards: number of GPUs that split the weights. None: the whole tensor-parallel group.
        tokens: number of tokens. None: all tokens of this GPU.
        saves_input: whether the op saves its input for the backward pass. If false, another op saves the same tensor.
        also_saved_bytes: bytes of other tensors that the module saves.
        tied: whether the weights belong to another op.
        gathers: whether this is the first product of a tensor-parallel region. With sequence parallelism, it gathers
            the tokens of the sequence. The gradient of its input is reduced over the group.
        memory: forward_bytes and backward_bytes, if they differ from those of a product of whole tensors.
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
        # With sequence parallelism, Megatron saves only this GPU's part of the input. It gathers the other parts again
        # in the backward pass. Plain PyTorch (DTensor) saves the gathered input.
        saved = tokens * inside
        gathered = 0
        if gathers and self.layout.sp and self.fused:
            saved, gathered = share(saved, self.layout.tp), saved
        self.add(
            name,
            component,
            "matmul",
            parameters=own,
            active_parameters=own,
            matmul_elements=weights,
            tied=tied,
            matrix=(1, inside, outside),
            rows=tokens,
            shards=1 if split == "none" else shards,
            formula=formula,
            forward_flops=flops,
            backward_flops=2 * flops,
            weight_bytes=bytes_of(weights + (outside if bias else 0), self.workload.weight_dtype),
            read_bytes=self.act(tokens * inside),
            written_bytes=self.act(tokens * outside),
            saved_bytes=(self.saved_input(saved, component) if saves_input else 0) + also_saved_bytes,
            **{"backward_bytes": self.act(tokens * (inside + outside) + gathered), **memory},
            collectives=self.collectives(split, tokens, inputs.size, outputs.size, gathers=gathers),
        )

    def collectives(
        self, split: Split, tokens: int, inputs: int, outputs: int, *, gathers: bool
    ) -> tuple[Collective, ...]:
        """Return the collectives of a matrix product, as in `linear`."""
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
        """Add a norm of `rows` rows with `width` elements each.

        The norm saves its input and fp32 statistics per row: one value for RMSNorm, two values for LayerNorm.

        rows: number of rows. None: one row per token of the residual stream.
        weight_width: width of the weight, if it differs from `width` because each head has its own weight. Plain
            PyTorch then multiplies with the weight in a separate step, which also saves the normalised values.
        saves_input: whether the norm saves its input. If false, another op saves the same tensor.
        """
        rows = self.stream_tokens if rows is None else rows
        weight = width if weight_width is None else weight_width
        vectors = int(norm.weight) + int(norm.bias)
        parameters = vectors * share(weight.size, shards)
        data = self.act(rows * width.size)
        saved = 4 * rows * norm.statistics + (data if saves_input else 0)
        if weight.size != width.size and norm.weight and not self.fused:
            saved += data
        temporary: dict[str, int] = {}
        offset = norm.unit_offset and norm.weight
        if norm.stepwise and not self.fused and (offset or self.workload.on_cpu):
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
        """Add trained elements that no matrix product uses, such as sinks, decays and gates.

        buffer: whether the elements are stored but not trained.
        """
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
        role: Role | None = None,
        collectives: tuple[Collective, ...] = (),
        **temporary: int,
    ) -> None:
        """Add an elementwise function.

        reads, writes, saves: numbers of elements in the format of the activations.
        saved_bytes: bytes that are saved in other formats.
        role: the computation of an op that has no module.
        temporary: forward_bytes and backward_bytes, if the function is computed in several steps.
        """
        self.add(
            name,
            component,
            "elementwise",
            read_bytes=self.act(reads),
            written_bytes=self.act(writes),
            saved_bytes=self.act(saves) + saved_bytes,
            role=role,
            collectives=collectives,
            **temporary,
        )

    def embedding_dropout(self) -> None:
        """Add the dropout of the input of the first layer, if there is dropout. It saves a mask of one byte per
        element (Korthikanti 2022, section 4.3)."""
        if self.workload.dropout:
            elements = self.stream_tokens * self.hidden.size
            self.elementwise(
                "embedding_dropout",
                "embedding",
                reads=elements,
                writes=elements,
                saved_bytes=elements,
                role="dropout",
            )

    def residual(self, name: str) -> None:
        """Add the sum of a sublayer's output and the residual stream.

        With dropout, the op saves a dropout mask of one byte per element.
        """
        elements = self.stream_tokens * self.hidden.size
        self.elementwise(
            name,
            "other",
            reads=2 * elements,
            writes=elements,
            saved_bytes=elements if self.workload.dropout else 0,
            role="residual",
        )
