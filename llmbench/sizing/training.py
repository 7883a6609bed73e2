"""Training memory: a step followed op by op.

Forward adds what each op saves. Backward frees it, while gradients grow. The peak is the highest moment of that walk.
It depends on the shape: the loss with a large vocabulary, the last feed-forward with a long sequence, the end of
backward with a short one. Each pipeline stage is walked, and the one with the highest peak is reported.

Sources: Korthikanti 2022 (arXiv 2205.05198) for what a transformer saves and for pipeline schedules; Narayanan 2021
(arXiv 2104.04473) for interleaving; ZeRO (arXiv 1910.02054) for sharded states; PyTorch's and Transformer Engine's own
behaviour where a docstring names them. Not counted: the allocator's rounding and fragmentation, and scratch memory of
kernels that no op states.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.sizing.dtypes import DType, bits_of, bytes_of
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import WORKSPACE_BYTES, Memory, fullest
from llmbench.sizing.op import Op
from llmbench.sizing.recipe import Optimizer, Precision, PrecisionName, state_bytes, training_precision
from llmbench.sizing.recompute import checkpoint_bytes
from llmbench.sizing.stages import Chunk, Stage, in_flight, stages
from llmbench.sizing.workload import Layout, Recompute, Workload
from llmbench.spec.mixer import branches
from llmbench.spec.model import ModelSpec


class _Moment(msgspec.Struct, frozen=True):
    """A moment of backward: bytes of activations (saved and temporary), of logits, and of gradients; and its op."""

    activations: int
    logits: int
    gradients: int
    op: str

    @property
    def bytes(self) -> int:
        """The sum of the three."""
        return self.activations + self.logits + self.gradients


def training_memory(
    spec: ModelSpec,
    seq_len: int,
    *,
    micro_batch: int = 1,
    micro_batches: int | None = None,
    layout: Layout | None = None,
    precision: PrecisionName = "mixed",
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    attention: Literal["flash", "standard"] = "flash",
    kernels: Literal["fused", "eager"] = "fused",
    dropout: bool = False,
) -> Memory:
    """The peak of a training step in its steady state, in which optimizer states exist.

    micro_batches: forward-backward passes per optimizer step; with more than one, gradients stay between them. None:
    one, or with pipeline stages twice as many as stages. Raises LayoutError if the layout does not divide the model.
    """
    layout = layout or Layout()
    recipe = training_precision(precision)
    passes = micro_batches or (1 if layout.pp == 1 else 2 * layout.pp)
    workload = Workload.train(
        seq_len,
        micro_batch,
        weight_dtype=recipe.weights,
        activation_dtype=recipe.activations,
        attention=attention,
        kernels=kernels,
        dropout=dropout,
    )
    run = _Run(spec, workload, layout, recipe, optimizer, recompute, passes)
    peaks = [run.stage_peak(stage) for stage in stages(spec, lower(spec, workload, layout), layout)]
    return fullest(peaks)


class _Run(msgspec.Struct):
    """The settings that all stages of one training run share."""

    spec: ModelSpec
    workload: Workload
    layout: Layout
    recipe: Precision
    optimizer: Optimizer
    recompute: Recompute
    passes: int

    def stage_peak(self, stage: Stage) -> Memory:
        """The peak of one stage during backward, with as many micro-batches in flight as its schedule has."""
        ops = stage.ops
        fsdp, fused = self.layout.zero == 3, self.workload.kernels == "fused"
        # With a master copy, FSDP's shards are that copy (counted with the optimizer); it gathers bf16 to compute.
        weights = sum(self.kept(op, 3, bytes_of(op.parameters, self.recipe.weights)) for op in ops)
        if fsdp and self.recipe.master:
            weights = 0
        states = sum(self.kept(op, 1, state_bytes(op, self.optimizer, self.recipe)) for op in ops)
        split_from = 4 if self.gathers_stage else 2
        gradients = sum(self.kept(op, split_from, bytes_of(op.parameters, self.gradient_dtype)) for op in ops)
        saved = [self.saved(chunk) for chunk in stage.chunks]
        others = (in_flight(stage.index, self.layout, self.passes) - 1) * sum(saved) // len(saved)
        top = max((moment for chunk in stage.chunks for moment in self.moments(chunk)), key=lambda m: m.bytes)
        if self.optimizer_moment(gradients) > top.bytes + others:
            top, others = _Moment(0, 0, 0 if self.persistent else gradients, "optimizer"), 0
        passing = top.gradients + self.placeholders(ops)
        parts = {
            "weights": weights + (self.gathered(stage) if fsdp else 0),
            "gradients": passing + (gradients if self.persistent else 0),
            "optimizer": states,
            "activations": top.activations + others,
            "logits": top.logits,
            "kv_cache": 0,
            "overhead": WORKSPACE_BYTES,
        }
        return Memory(
            phase="train",
            seq_len=self.workload.query_len,
            micro_batch=self.workload.batch,
            layout=self.layout,
            peak_bytes=sum(parts.values()),
            parts_bytes=parts,
            full_bytes={
                "weights": weights,
                "gradients": gradients,
                "optimizer": states,
                "activations": others + max(saved),
            },
            moment=top.op,
            stage=stage.index,
            stage_peaks=(),
            parameters=sum(op.parameters for op in ops),
            approximate=training_doubts(self.spec),
            reserved_bytes=sum(parts.values()) + sum(op.read_bytes for op in ops if op.kind == "loss" and not fused),
        )

    @property
    def gradient_dtype(self) -> DType:
        """Format of the gradients the optimizer uses: FSDP reduces them to that of its fp32 shards."""
        return "fp32" if self.layout.zero == 3 and self.recipe.master else self.recipe.gradients

    @property
    def persistent(self) -> bool:
        """Whether gradients of all weights exist all the time: they accumulate over micro-batches, or stand in buffers
        of their own format (Megatron's fp32)."""
        return self.passes > 1 or self.recipe.gradients != self.recipe.weights

    @property
    def gathers_stage(self) -> bool:
        """Whether FSDP has a whole stage's weights and gradients at once: torch's pipeline schedules gather once, and
        reduce after the last micro-batch."""
        return self.layout.zero == 3 and self.layout.pp > 1

    @property
    def accumulates_in_place(self) -> bool:
        """Whether products add their weight gradient directly to an fp32 buffer (Megatron with Transformer Engine)."""
        return self.workload.kernels == "fused" and self.recipe.gradients != self.recipe.weights

    def placeholders(self, ops: list[Op]) -> int:
        """Bytes of the empty weight gradients that autograd gets where gradients accumulate in place. Transformer
        Engine keeps one of every shape. (There gate and up are one matrix, and so are q, k and v.)"""
        if not self.accumulates_in_place:
            return 0
        shapes = {
            (op.name, op.matrix[1:]): bytes_of(op.matrix[1] * op.matrix[2], self.recipe.weights)
            for op in ops
            if op.matrix is not None and op.kind == "matmul" and op.layer
        }
        return sum(shapes.values())

    @property
    def widening(self) -> int:
        """How many times wider a gradient is stored than backward computes it."""
        return bits_of(self.gradient_dtype) // bits_of(self.recipe.weights) if self.layout.zero == 3 else 1

    def optimizer_moment(self, gradients: int) -> int:
        """Bytes of gradients that exist together only after backward, while the optimizer uses them."""
        return 0 if self.persistent else gradients

    def kept(self, op: Op, from_zero: int, size: int) -> int:
        """A GPU's share of `size` bytes that ZeRO splits from stage `from_zero` on. Experts have fewer copies to
        split."""
        if self.layout.zero < from_zero:
            return size
        copies = self.layout.dp * self.layout.cp
        if op.component == "experts":
            copies //= self.layout.ep
        return -(-size // copies)

    def gathered(self, stage: Stage) -> int:
        """Bytes of weights that FSDP has gathered: those of the running layer and of the next one, and of embedding and
        head, which run at the peak of a large vocabulary."""
        layers = sorted(
            (
                sum(bytes_of(op.parameters, self.recipe.weights) for op in layer)
                for chunk in stage.chunks
                for layer in chunk.layers
            ),
            reverse=True,
        )
        outside = sum(
            bytes_of(op.parameters, self.recipe.weights)
            for chunk in stage.chunks
            for op in (*chunk.before, *chunk.after)
        )
        return sum(layers if self.gathers_stage else layers[:2]) + outside

    def stream(self) -> int:
        """Bytes of a micro-batch's residual stream on this GPU. A checkpointed layer saves it, and its gradient exists
        during the backward of each sublayer."""
        tokens = -(-self.workload.batch * self.workload.query_len // self.layout.cp)
        if self.layout.sp:
            tokens = -(-tokens // self.layout.tp)
        return bytes_of(tokens * self.spec.hidden_size, self.recipe.activations)

    def checkpoint(self, layer: tuple[Op, ...]) -> int:
        """Bytes that a layer saves from its forward to its backward."""
        return checkpoint_bytes(layer, self.recompute, self.stream())

    def saved(self, chunk: Chunk) -> int:
        """Bytes that a chunk saves of one micro-batch until its backward starts, without logits."""
        outside = sum(op.saved_bytes for op in (*chunk.before, *chunk.after) if op.kind != "loss")
        return outside + sum(map(self.checkpoint, chunk.layers))

    def moments(self, chunk: Chunk) -> list[_Moment]:
        """The moments of one micro-batch's backward over a chunk, last op first."""
        moments: list[_Moment] = []
        below = [0]  # bytes saved before each layer
        for layer in chunk.layers:
            below.append(below[-1] + self.checkpoint(layer))
        first = sum(op.saved_bytes for op in chunk.before)
        gradients = self._through(chunk.after, first + below[-1], 0, moments, inside=False)
        cache: dict[int, tuple[list[_Moment], int]] = {}
        for index in range(len(chunk.layers) - 1, -1, -1):
            layer = chunk.layers[index]
            if id(layer[0]) not in cache:
                own: list[_Moment] = []
                cache[id(layer[0])] = own, self._through(layer, 0, 0, own, inside=True)
            own, added = cache[id(layer[0])]
            best = max(own, key=lambda moment: moment.bytes)
            moments.append(
                _Moment(best.activations + first + below[index], best.logits, best.gradients + gradients, best.op)
            )
            gradients += added
        self._through(chunk.before, 0, gradients, moments, inside=False)
        return moments

    def _through(
        self, ops: tuple[Op, ...], saved_before: int, gradients: int, moments: list[_Moment], *, inside: bool
    ) -> int:
        """Append the moments of these ops' backward; returns the bytes of gradients after it."""
        saved = [op.saved_bytes - (op.selective_bytes if self.recompute == "selective" else 0) for op in ops]
        alive = saved_before + sum(saved)
        logits = sum(size for op, size in zip(ops, saved, strict=True) if op.kind == "loss")
        whole = 0  # gradients of this unit not yet split over the data-parallel group
        after = gradients
        stream = self.stream() if inside else 0
        for op, size in zip(reversed(ops), reversed(saved), strict=True):
            again = op.selective_bytes if self.recompute == "selective" else 0
            passing = op.backward_bytes + again + (0 if op.name.endswith("residual") else stream)
            is_logits = op.kind == "loss"
            new = self._weight_gradient(op)
            moments.append(
                _Moment(
                    activations=alive - logits + (0 if is_logits else passing),
                    logits=logits + (passing if is_logits else 0),
                    gradients=gradients + whole + new,
                    op=op.name,
                )
            )
            alive -= size
            logits -= size if is_logits else 0
            if not self.persistent:
                whole += new
                after += self.kept(op, 2, new * self.widening)
            elif self.layout.zero >= 2:
                whole += new
        return after

    def _weight_gradient(self, op: Op) -> int:
        """Bytes of an op's weight gradient as backward computes it; a tied head's is computed twice, then summed."""
        elements = op.parameters
        if self.accumulates_in_place and op.matrix is not None and op.kind == "matmul" and op.layer:
            return 0
        if op.tied:
            elements = 2 * elements if op.kind == "embedding" else elements + op.matmul_elements
        return bytes_of(elements, self.recipe.weights)


def training_doubts(spec: ModelSpec) -> tuple[str, ...]:
    """Why a training figure of this model is approximate. A trace of the real model confirms the other parts
    (tests/model/test_trace.py)."""
    layers = [*spec.layers.values(), *(spec.encoder.layers.values() if spec.encoder is not None else ())]
    mixers = [mixer for layer in layers for mixer in branches(layer.mixer)]
    doubts = list(dict.fromkeys(mixer.training_doubt for mixer in mixers if mixer.training_doubt is not None))
    if spec.extra or any(layer.extra for layer in layers) or spec.hyper_connections is not None:
        doubts.append("what extra weights and hyper-connections save for backward is not counted in full")
    return tuple(doubts)
