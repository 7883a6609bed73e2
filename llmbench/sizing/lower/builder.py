"""The few shapes of work that every layer is made of, each with its figures: the formulas of a matrix product, a
norm, an elementwise function, an attention. The files beside this one say which of them a model consists of.

Legend: B batch, S query length, T key length, D hidden, N query heads, K KV heads, H head dim.
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
    """A width and what it is called in the spec's terms."""

    size: int
    label: str


def product(*dims: Dim) -> Dim:
    """The width that is the product of several."""
    size = 1
    for dim in dims:
        size *= dim.size
    return Dim(size, " × ".join(dim.label for dim in dims))


def share(size: int, ways: int) -> int:
    """The largest of `ways` nearly equal shares of `size`."""
    return -(-size // ways)


def token_cache(b: Builder, row: CacheRow | None, indexer_row: CacheRow | None = None) -> Cache:
    """The cache of a row per token on this GPU. Tensor parallelism splits the heads of a row; beyond their number, GPUs
    have copies. None: nothing is cached."""

    def local(row: CacheRow | None) -> int:
        if row is None:
            return 0
        return row._replace(heads=share(row.heads, min(b.layout.tp, row.heads))).elements

    span = None if row is None else row.span
    return Cache(per_token=local(row), span=span, indexer_per_token=local(indexer_row))


class Builder:
    """Collects the ops of one stack of layers, for one GPU.

    `tokens` are the tokens this GPU works on; `stream_tokens` those of the residual stream it holds, fewer under
    sequence parallelism.
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
        """Ops added from now on stand in these layers."""
        self.prefix, self.layer, self.layers = prefix, layer, tuple(layers)

    @contextmanager
    def only(self, layers: tuple[int, ...]) -> Iterator[None]:
        """Ops added inside stand in these layers only."""
        every, self.layers = self.layers, layers
        try:
            yield
        finally:
            self.layers = every

    def act(self, elements: int) -> int:
        """Bytes of activations."""
        return bytes_of(elements, self.workload.activation_dtype)

    def add(self, name: str, component: Component, kind: OpKind, **figures: Any) -> None:
        """Append an op at the current place. While its forward runs, what it reads and writes is held, and while its
        backward runs, the gradients of both, unless it says otherwise."""
        moved = figures.get("read_bytes", 0) + figures.get("written_bytes", 0) + figures.get("kv_read_bytes", 0)
        figures.setdefault("forward_bytes", moved)
        figures.setdefault("backward_bytes", figures.get("read_bytes", 0) + figures.get("written_bytes", 0))
        self.ops.append(
            Op(
                name=self.prefix + name,
                component=component,
                kind=kind,
                layers=self.layers,
                layer=self.layer,
                stack=self.stack,
                **figures,
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
        ways: int | None = None,
        tokens: int | None = None,
        saves_input: bool = True,
        also_saved_bytes: int = 0,
        tied: bool = False,
        gathers: bool = False,
    ) -> None:
        """A matrix product: inputs × outputs weights (+ outputs of bias), 2 FLOPs a weight and token.

        Backward is twice forward: one product for the input's gradient, one for the weight's. split "column" gives
        each GPU a share of the outputs, "row" of the inputs (its outputs are then summed over the group; the bias is
        added once, so every GPU has it). `saves_input`: this op keeps its input for backward; False where another op
        keeps the same tensor. `also_saved_bytes`: what the module keeps beside. `gathers`: the first product of a
        tensor-parallel region, which gathers the sequence (with sp) and whose input gradient is reduced. `tied`: the
        weights belong to another op.
        """
        ways = self.layout.tp if ways is None else ways
        tokens = self.tokens if tokens is None else tokens
        inside = share(inputs.size, ways) if split == "row" else inputs.size
        outside = share(outputs.size, ways) if split == "column" else outputs.size
        weights = inside * outside
        own = (0 if tied else weights) + (outside if bias else 0)
        formula = "" if tied else f"{inputs.label} × {outputs.label}"
        if bias:
            formula = f"{formula} + {outputs.label}" if formula else outputs.label
        flops = 2 * tokens * weights
        # Under sequence parallelism Megatron keeps a GPU's part of the input and gathers it again in backward; plain
        # torch (DTensor) keeps what it gathered.
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
            shards=1 if split == "none" else ways,
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
        """A norm over `width` of each of `rows` rows (default: the residual stream's tokens).

        Saves its input and one (RMSNorm) or two (LayerNorm) fp32 statistics a row. `weight_width` where the weight is
        wider than what is normalised together (a weight per head): plain torch multiplies by it in a step of its own,
        which keeps the normalised values too. RMSNorm step by step: see `stepwise_norm`.
        """
        rows = self.stream_tokens if rows is None else rows
        weight = width if weight_width is None else weight_width
        vectors = int(norm.weight) + int(norm.bias)
        parameters = vectors * share(weight.size, shards)
        data = self.act(rows * width.size)
        saved = 4 * rows * (2 if norm.kind == "layernorm" else 1) + (data if saves_input else 0)
        if weight.size != width.size and norm.weight and not self.fused:
            saved += data
        passing: dict[str, int] = {}
        offset = norm.unit_offset and norm.weight
        if norm.kind == "rmsnorm" and not self.fused and (offset or self.workload.on_cpu):
            step = stepwise_norm(rows * width.size, data, weighted=norm.weight, keeps=not offset)
            saved += step.saved_bytes
            passing = {"forward_bytes": step.forward_bytes, "backward_bytes": step.backward_bytes}
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
            **passing,
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
        """Trained elements that no matrix product uses (sinks, decays, gates), or a stored buffer of them."""
        held = share(width.size, shards)
        if buffer:
            self.add(name, component, "elementwise", buffers=held, shards=shards)
            return
        self.add(
            name,
            component,
            "elementwise",
            parameters=held,
            active_parameters=held,
            shards=shards,
            formula=width.label,
            weight_bytes=bytes_of(held, self.workload.weight_dtype),
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
        **held: int,
    ) -> None:
        """A function of its inputs, element by element; figures in elements, `saved_bytes` for other widths. `held`:
        forward_bytes and backward_bytes, where it is done in steps."""
        self.add(
            name,
            component,
            "elementwise",
            read_bytes=self.act(reads),
            written_bytes=self.act(writes),
            saved_bytes=self.act(saves) + saved_bytes,
            **held,
        )

    def residual(self, name: str) -> None:
        """The sum of a sublayer's output and the residual stream; with dropout, its mask is saved (one byte)."""
        elements = self.stream_tokens * self.hidden.size
        self.elementwise(
            name,
            "other",
            reads=2 * elements,
            writes=elements,
            saved_bytes=elements if self.workload.dropout else 0,
        )
