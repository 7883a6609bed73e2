"""Memory of a training step, computed op by op.

In the forward pass, each op adds the activations that it saves. In the backward pass, each op frees its activations and
adds the gradients of its weights. The peak is the moment with the most allocated bytes. The peak is at the loss if the
vocabulary is large, at the last feed-forward if the sequence is long, and at the end of the backward pass if the
sequence is short. llmbench computes the peak of each pipeline stage and reports the highest one.

Sources: Korthikanti 2022 (arXiv 2205.05198) for saved activations and pipeline schedules. Narayanan 2021 (arXiv
2104.04473) for interleaving. ZeRO (arXiv 1910.02054) for sharded states. If a figure follows the behaviour of PyTorch
or Transformer Engine, the docstring of its function says so.

Not counted: the allocator's rounding and fragmentation, and scratch memory of kernels that is not in the op table.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.sizing.dtypes import DType, bits_of, bytes_of
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import WORKSPACE_BYTES, Memory, highest_stage
from llmbench.sizing.op import Op
from llmbench.sizing.recipe import Optimizer, Precision, PrecisionName, state_bytes, training_precision
from llmbench.sizing.recompute import checkpoint_bytes
from llmbench.sizing.stages import Chunk, Stage, in_flight, stages
from llmbench.sizing.workload import Layout, Recompute, Workload
from llmbench.spec.mixer import branches
from llmbench.spec.model import ModelSpec


class _Moment(msgspec.Struct, frozen=True):
    """The bytes that are allocated while one op of the backward pass runs.

    activations: bytes of saved activations and of temporaries. logits: bytes of the logits and their gradients.
    gradients: bytes of weight gradients. op: name of the running op.
    """

    activations: int
    logits: int
    gradients: int
    op: str

    @property
    def bytes(self) -> int:
        """The sum of the bytes of activations, logits and gradients."""
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
    """Compute the peak memory of a training step. The optimizer states already exist, so it is not the first step.

    micro_batches: number of forward and backward passes per optimizer step. If it is more than one, gradients stay
        allocated between the passes. None: one micro-batch. With more than one pipeline stage: twice as many
        micro-batches as stages.

    Raises LayoutError if the model cannot be divided as the layout says.
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
    return highest_stage(peaks)


class _Run(msgspec.Struct):
    """The settings of one training run. All pipeline stages have the same settings."""

    spec: ModelSpec
    workload: Workload
    layout: Layout
    recipe: Precision
    optimizer: Optimizer
    recompute: Recompute
    passes: int

    def stage_peak(self, stage: Stage) -> Memory:
        """Return the peak memory of one stage. The pipeline schedule gives the number of micro-batches in flight."""
        ops = stage.ops
        fsdp, fused = self.layout.zero == 3, self.workload.kernels == "fused"
        # With a master copy, FSDP stores only shards of the fp32 master copy, which `state_bytes` counts. It gathers
        # bf16 weights only for the layers that are running.
        weights = sum(self.stored_bytes(op, 3, bytes_of(op.parameters, self.recipe.weights)) for op in ops)
        if fsdp and self.recipe.master:
            weights = 0
        states = sum(self.stored_bytes(op, 1, state_bytes(op, self.optimizer, self.recipe)) for op in ops)
        split_from = 4 if self.gathers_stage else 2
        gradients = sum(self.stored_bytes(op, split_from, bytes_of(op.parameters, self.gradient_dtype)) for op in ops)
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
        """The format of the gradients that the optimizer reads. With a master copy, FSDP reduces them in fp32."""
        return "fp32" if self.layout.zero == 3 and self.recipe.master else self.recipe.gradients

    @property
    def persistent(self) -> bool:
        """Whether the gradients of all weights are allocated during the whole step.

        This is the case if they accumulate over several micro-batches, or if their format differs from the format of
        the weights. Megatron's fp32 gradients are an example of the second case.
        """
        return self.passes > 1 or self.recipe.gradients != self.recipe.weights

    @property
    def gathers_stage(self) -> bool:
        """Whether FSDP gathers the weights of a whole stage at once, and stores all its gradients unsharded.

        This is the case with pipeline stages. PyTorch's schedules gather the weights once, and reduce the gradients
        only after the last micro-batch.
        """
        return self.layout.zero == 3 and self.layout.pp > 1

    @property
    def accumulates_in_place(self) -> bool:
        """Whether each matrix product adds its weight gradient to an fp32 buffer, as in Megatron with Transformer
        Engine."""
        return self.workload.kernels == "fused" and self.recipe.gradients != self.recipe.weights

    def placeholders(self, ops: list[Op]) -> int:
        """Return the bytes of the placeholder gradients. They exist if the real gradients accumulate in an fp32 buffer.

        Transformer Engine gives autograd a placeholder instead of the real gradient. All weights with the same shape
        use one placeholder. Transformer Engine fuses gate and up into one matrix, and q, k and v into another matrix.
        """
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
        """Bytes per element of a stored gradient, divided by bytes per element of a newly computed gradient."""
        return bits_of(self.gradient_dtype) // bits_of(self.recipe.weights) if self.layout.zero == 3 else 1

    def optimizer_moment(self, gradients: int) -> int:
        """Return the bytes of the gradients that exist at the optimizer step but not during the whole training step."""
        return 0 if self.persistent else gradients

    def stored_bytes(self, op: Op, from_zero: int, size: int) -> int:
        """Return the bytes that each GPU stores of a tensor of `size` bytes.

        ZeRO splits the tensor from stage `from_zero` on, over all GPUs that have a copy of it. With expert parallelism,
        fewer GPUs have a copy of an expert.
        """
        if self.layout.zero < from_zero:
            return size
        copies = self.layout.dp * self.layout.cp
        if op.component == "experts":
            copies //= self.layout.ep
        return -(-size // copies)

    def gathered(self, stage: Stage) -> int:
        """Return the bytes of the weights that FSDP has gathered at the peak.

        These are the weights of the running layer and of the next layer, and the weights outside the layers (embedding
        and head). Embedding and head are included, because the peak is at the head if the vocabulary is large.
        """
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
        """Return the bytes of the residual stream of one micro-batch on this GPU.

        A fully recomputed layer saves only this stream. In the backward pass of each sublayer, the gradient of the
        stream is also allocated.
        """
        tokens = -(-self.workload.batch * self.workload.query_len // self.layout.cp)
        if self.layout.sp:
            tokens = -(-tokens // self.layout.tp)
        return bytes_of(tokens * self.spec.hidden_size, self.recipe.activations)

    def checkpoint(self, layer: tuple[Op, ...]) -> int:
        """Return the bytes that a layer saves in its forward pass for its backward pass."""
        return checkpoint_bytes(layer, self.recompute, self.stream())

    def saved(self, chunk: Chunk) -> int:
        """Return the bytes that a chunk saves in the forward pass of one micro-batch, without logits."""
        outside = sum(op.saved_bytes for op in (*chunk.before, *chunk.after) if op.kind != "loss")
        return outside + sum(map(self.checkpoint, chunk.layers))

    def moments(self, chunk: Chunk) -> list[_Moment]:
        """Return the moments of the backward pass of one micro-batch through a chunk, from the last op to the first."""
        moments: list[_Moment] = []
        below = [0]  # below[i]: bytes that the layers before layer i have saved
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
        """Append a moment for the backward pass of each op. Return the bytes of gradients after the last moment.

        saved_before: bytes that earlier ops have saved. gradients: bytes of gradients before the first moment.
        inside: whether the ops are inside a layer.
        """
        saved = [op.saved_bytes - (op.selective_bytes if self.recompute == "selective" else 0) for op in ops]
        alive = saved_before + sum(saved)
        logits = sum(size for op, size in zip(ops, saved, strict=True) if op.kind == "loss")
        whole = 0  # bytes of gradients that FSDP or ZeRO has not yet split over the data-parallel group
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
                after += self.stored_bytes(op, 2, new * self.widening)
            elif self.layout.zero >= 2:
                whole += new
        return after

    def _weight_gradient(self, op: Op) -> int:
        """Return the bytes of an op's weight gradient.

        A tied matrix has two gradients, one from the embedding and one from the head, until autograd adds them.
        """
        elements = op.parameters
        if self.accumulates_in_place and op.matrix is not None and op.kind == "matmul" and op.layer:
            return 0
        if op.tied:
            elements = 2 * elements if op.kind == "embedding" else elements + op.matmul_elements
        return bytes_of(elements, self.recipe.weights)


def training_doubts(spec: ModelSpec) -> tuple[str, ...]:
    """Return the reasons why the predicted training memory of this model is approximate.

    An empty tuple means that the prediction is exact. tests/model/test_trace.py compares the prediction for such models
    with a trace of the PyTorch model.
    """
    layers = [*spec.layers.values(), *(spec.encoder.layers.values() if spec.encoder is not None else ())]
    mixers = [mixer for layer in layers for mixer in branches(layer.mixer)]
    doubts = list(dict.fromkeys(mixer.training_doubt for mixer in mixers if mixer.training_doubt is not None))
    if spec.extra or any(layer.extra for layer in layers) or spec.hyper_connections is not None:
        doubts.append("llmbench does not count all activations that extra weights and hyper-connections save")
    return tuple(doubts)
