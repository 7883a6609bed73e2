"""The settings of a training run, its pipeline stages, and what stays allocated during its steps."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, mul
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import DType, Tensors, bits_of, bytes_of
from llmbench.sizing.lower import lower, lower_next_token_prediction
from llmbench.sizing.op import Op
from llmbench.sizing.recipe import Offload, Optimizer, Precision, Recipe, fp8_weights, state_bytes, temporary_bits
from llmbench.sizing.recompute import checkpoint_bytes
from llmbench.sizing.stages import Chunk, Stage, chunks_in_flight, stages
from llmbench.sizing.workload import Layout, Recompute, Workload
from llmbench.sizing.workspaces import training_workspaces
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.adapters import Adapters
    from llmbench.sizing.weight_recipe import WeightRecipe

Place = Literal["loss", "after", "layer", "before", "optimizer"]
"""A place in a step: the loss, another op after the layers, a layer, an op before the layers, or the optimizer."""
_PLACES: tuple[Place, ...] = get_args(Place)


class Resident(msgspec.Struct, frozen=True):
    """The bytes of one pipeline stage that stay allocated during the whole step, except those of `others`.

    gradients, states: bytes of all gradients and of all optimizer states of the stage. The gradients stay allocated
        only if they are persistent.
    weights: bytes of the stored weights. gathered: bytes of the weights that FSDP has gathered, at each place.
    placeholders: bytes of the placeholder gradients.
    others: for each chunk, the bytes that other micro-batches and chunks have saved when its backward pass runs. They
        are freed before the optimizer runs.
    update: bytes of the temporaries of the optimizer step.
    inputs: bytes of the inputs that chunks keep between the steps (see `TrainingRun.kept_inputs`).
    host: bytes of each part that the memory of the host stores.
    """

    weights: int
    gathered: dict[Place, int]
    gradients: int
    states: int
    placeholders: int
    others: tuple[int, ...]
    update: int
    inputs: int
    host: dict[str, int]


def training_stages(
    spec: ModelSpec,
    workload: Workload,
    layout: Layout,
    mtp: bool,
    adapters: Adapters | None = None,
    base: WeightRecipe | None = None,
) -> list[Stage]:
    """Return the pipeline stages of a training step. `mtp`: whether multi-token-prediction modules are trained.

    adapters, base: see TrainingRun.

    Raises LayoutError if the model cannot be divided as the layout says, SpecError if it has no such modules.
    """
    if mtp and spec.next_token_prediction is None:
        raise SpecError(f"{spec.name} has no modules for multi-token prediction", hint="leave out mtp")
    ops = lower(spec, workload, layout) + (lower_next_token_prediction(spec, workload, layout) if mtp else [])
    if adapters is not None:
        from llmbench.sizing.adapted_ops import adapt  # only runs with adapters need it

        ops = adapt(ops, adapters, workload, base)
    return stages(spec, ops, layout)


class TrainingRun(msgspec.Struct, kw_only=True):
    """The settings of one training run, and its pipeline stages.

    formats: the number formats of weights, gradients and states.
    passes: number of micro-batches per optimizer step.
    compute_capability: compute capability of the GPU, on which the workspaces of CUDA's libraries depend.
    adapters: the adapters that are trained. The weights of the model are then frozen. None: all weights are trained.
    base: how the frozen weights are stored. None: in the format of the weights of the recipe.
    """

    spec: ModelSpec
    workload: Workload
    layout: Layout
    formats: Precision
    optimizer: Optimizer
    recipe: Recipe
    recompute: Recompute
    passes: int
    compute_capability: float
    stages: list[Stage]
    adapters: Adapters | None = None
    base: WeightRecipe | None = None

    def with_layout(self, layout: Layout) -> TrainingRun:
        """Return the same run with another layout. Raises LayoutError if the model cannot be divided so."""
        return msgspec.structs.replace(
            self,
            layout=layout,
            stages=training_stages(self.spec, self.workload, layout, self.recipe.mtp, self.adapters, self.base),
        )

    def with_micro_batch(self, sequences: int, passes: int) -> TrainingRun:
        """Return the same run with another number of sequences per micro-batch, and of micro-batches per step."""
        workload = msgspec.structs.replace(self.workload, batch=sequences)
        stages = training_stages(self.spec, workload, self.layout, self.recipe.mtp, self.adapters, self.base)
        return msgspec.structs.replace(self, workload=workload, passes=passes, stages=stages)

    @property
    def workspace_bytes(self) -> int:
        """The bytes of library workspaces, and of buffers that live as long as the process."""
        return training_workspaces(self.spec, self.workload, self.layout, self.recipe, self.compute_capability)

    def resident(self, stage: Stage) -> Resident:
        """Return the bytes of a stage that do not depend on the moment."""
        split_from = 4 if self.gathers_stage else 2
        weights = gradients = states = 0
        for op, count in stage.counts:
            if op.parameters:
                stored = self.stored_bytes
                weights += count * stored(op, 3, sum(tensors.bytes for tensors in self.stored_weights(op)))
                gradients += count * stored(op, split_from, bytes_of(op.trained, self.gradient_dtype))
                states += count * stored(op, 1, state_bytes(op, self.optimizer, self.formats, self.recipe))
        saved = [self.saved(chunk) for chunk in stage.chunks]
        others = tuple(sum(map(mul, counts, saved)) for counts in self.in_flight(stage, saved))
        host: dict[str, int] = {}
        if self.offloads("weights"):
            host |= {"weights": weights, "gradients": gradients}
            weights = gradients = 0
        if self.offloads("weights") or self.offloads("states"):
            host["optimizer"] = states
            states = 0
        if self.offloads("activations"):
            own = [sum(self.checkpoints(chunk)[:-1]) for chunk in stage.chunks]
            host["activations"] = max(map(add, others, own))
            others = (0,) * len(others)
        others = tuple(map(add, others, (self.waiting_heads(stage, chunk) for chunk in stage.chunks)))
        return Resident(
            weights=weights,
            gathered=self.gathered(stage),
            gradients=gradients,
            states=states,
            placeholders=self.placeholders(stage.ops),
            others=others,
            update=0 if "optimizer" in host else self.update_temporaries(stage) + self.gradient_copies(stage),
            inputs=self.kept_inputs(stage),
            host=host,
        )

    def kept_inputs(self, stage: Stage) -> int:
        """Return the bytes of the inputs that the chunks of a stage keep until their next micro-batch.

        Megatron's chunk keeps the hidden states that it has received last (core/transformer/transformer_block.py,
        set_input_tensor), and these keep their gradient (core/pipeline_parallel/schedules.py, backward_step). During
        the passes, they are the input of a micro-batch in flight. The first chunk of the model receives none.
        """
        if not self.recipe.megatron:
            return 0
        received = len(stage.chunks) - (stage.index == 0)
        return 2 * received * self.stream()

    def offloads(self, part: Offload) -> bool:
        """Return whether the memory of the host stores a part."""
        return part in self.recipe.offload

    def update_temporaries(self, stage: Stage) -> int:
        """Return the bytes of the temporaries of the optimizer step, of all weights together or of the largest ones."""
        bits = temporary_bits(self.optimizer, self.formats, self.recipe)
        if not bits:
            return 0
        sizes = [(self.stored_bytes(op, 1, (op.trained * bits + 7) // 8), count) for op, count in stage.counts]
        if self.recipe.step == "loop":
            return 2 * max(size for size, _ in sizes)
        return sum(size * count for size, count in sizes)

    def gradient_copies(self, stage: Stage) -> int:
        """Return the bytes of the fp32 copies of 16-bit gradients that Megatron's optimizer reads.

        They are split as the master copy is. The next step frees them at its start. The precision-aware optimizer reads
        the 16-bit gradients themselves.
        """
        if not self.recipe.megatron or self.recipe.precision_aware:
            return 0
        if not self.formats.master or bits_of(self.formats.gradients) != 16:
            return 0
        return sum(count * self.stored_bytes(op, 1, 4 * op.trained) for op, count in stage.counts if op.parameters)

    def waits(self, op: Op) -> bool:
        """Return whether the last micro-batch, too, computes the gradient of the weights of an op later."""
        return self.recipe.deferred_heads >= self.passes and _is_head(op)

    def waiting_heads(self, stage: Stage, chunk: Chunk) -> int:
        """Return the bytes that the heads of earlier micro-batches keep for the gradients of their weights.

        These are the inputs of the heads and the gradients of their outputs. The chunk is that of the last micro-batch.
        """
        kept = sum(op.saved_bytes + op.written_bytes for each in stage.chunks for op in each.after if _is_head(op))
        earlier = self.passes - 1 if chunk.after else self.passes
        return min(self.recipe.deferred_heads, earlier) * kept

    @property
    def loader_mask_bytes(self) -> int:
        """The bytes of the data loader's attention mask. The forward pass holds it until the loss is computed."""
        made = self.recipe.megatron if self.recipe.loader_mask is None else self.recipe.loader_mask
        return self.workload.batch * self.workload.query_len**2 if made else 0

    def in_flight(self, stage: Stage, saved: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the chunks in flight (see `chunks_in_flight`). `saved`: bytes that each chunk of the stage saves."""
        return chunks_in_flight(stage.index, self.layout, self.passes, saved)

    @property
    def in_place(self) -> bool:
        """Whether each matrix product adds its weight gradient to an fp32 buffer, as in Megatron with Transformer
        Engine and gradient-accumulation fusion. The buffers exist if the gradients are not split."""
        fused = self.workload.kernels == "fused" if self.recipe.fused_gradients is None else self.recipe.fused_gradients
        return fused and self.formats.gradients != self.formats.weights and self.layout.zero < 2

    @property
    def gradient_dtype(self) -> DType:
        """The format of the gradients that the optimizer reads.

        With a master copy, PyTorch's FSDP reduces them in fp32. Megatron-FSDP uses the format of the precision.
        """
        fsdp = self.layout.zero == 3 and not self.recipe.megatron
        return "fp32" if fsdp and self.formats.master else self.formats.gradients

    @property
    def persistent(self) -> bool:
        """Whether the gradients of all weights are allocated during the whole step.

        This is the case if they accumulate over several micro-batches, or if their format differs from the format of
        the weights. Megatron's fp32 gradients are an example of the second case.
        """
        return self.recipe.megatron or self.passes > 1 or self.formats.gradients != self.formats.weights

    @property
    def gathers_stage(self) -> bool:
        """Whether FSDP gathers the weights of a whole stage at once, and stores all its gradients unsharded.

        This is the case with pipeline stages. PyTorch's schedules gather the weights once, and reduce the gradients
        only after the last micro-batch.
        """
        return self.layout.zero == 3 and self.layout.pp > 1

    def placeholders(self, ops: list[Op]) -> int:
        """Return the bytes of the placeholder gradients. They exist if the real gradients accumulate in an fp32 buffer.

        Transformer Engine gives autograd a placeholder instead of the real gradient. All weights with the same shape
        use one placeholder. Transformer Engine fuses gate and up into one matrix, and q, k and v into another matrix.
        """
        if not self.in_place:
            return 0
        shapes = {
            (op.name, op.matrix[1:]): bytes_of(op.matrix[1] * op.matrix[2], self.formats.weights)
            for op in ops
            if op.matrix is not None and op.kind == "matmul" and op.layer and not op.frozen
        }
        return sum(shapes.values())

    @property
    def widening(self) -> int:
        """Bytes per element of a stored gradient, divided by bytes per element of a newly computed gradient."""
        return bits_of(self.gradient_dtype) // bits_of(self.formats.weights) if self.layout.zero == 3 else 1

    def weight_tensors(self, op: Op) -> list[Tensors]:
        """Return the weights of one instance of an op while it runs, and their copies for matrix products in fp8."""
        matrices = fp8_weights(op, self.recipe)
        copies = {"none": "", "cached": "fp8 copies and transposes", "primary": "fp8 transposes"}[self.recipe.fp8]
        per_weight = 2 if self.recipe.fp8 == "cached" else 1
        return self.sent_weights(op) + ([Tensors(copies, per_weight * matrices, 8)] if matrices else [])

    def stored_weights(self, op: Op) -> list[Tensors]:
        """Return the weights of one instance of an op that stay allocated, before ZeRO splits them.

        With a master copy, PyTorch's FSDP stores only shards of the master copy, which `state_tensors` counts, and
        gathers bf16 weights for the running layers. Frozen weights have no master copy. Megatron-FSDP stores shards of
        the weights too (megatron_fsdp/param_and_grad_buffer.py).
        """
        if self.layout.zero < 3:
            return self.weight_tensors(op)
        if self.formats.master and not op.frozen and not self.recipe.megatron:
            return []
        return self.sent_weights(op)

    def sent_weights(self, op: Op) -> list[Tensors]:
        """Return the weights of one instance of an op as ZeRO gathers them: without the copies that each GPU makes."""
        if not op.parameters:
            return []
        if op.frozen and self.base is not None:
            from llmbench.sizing.stored_tensors import stored_tensors  # only runs with a quantised base need it

            own = msgspec.structs.replace(op, buffers=0)
            layer = op.layers[0] if op.layers else None
            return stored_tensors(own, self.base.storage(op, layer), self.base.plain_bits(op), loaded=True)
        kind = "parameters" if self.adapters is None else "frozen parameters" if op.frozen else "adapter parameters"
        stored = fp8_weights(op, self.recipe) if self.recipe.fp8 == "primary" else 0
        plain = op.parameters - stored
        return [
            *([Tensors(kind, plain, bits_of(self.formats.weights))] if plain else []),
            *([Tensors("fp8 weights", stored, 8)] if stored else []),
        ]

    def weight_bytes(self, op: Op) -> int:
        """Return the bytes of the weights of one instance of an op while it runs (see `weight_tensors`)."""
        return sum(tensors.bytes for tensors in self.weight_tensors(op))

    def stored_bytes(self, op: Op, from_zero: int, size: int) -> int:
        """Return the bytes that each GPU stores of a tensor of `size` bytes.

        ZeRO splits the tensor from stage `from_zero` on, over all GPUs that have a copy of it.
        """
        if self.layout.zero < from_zero:
            return size
        return -(-size // self.copies(op))

    def copies(self, op: Op) -> int:
        """Return the number of GPUs over which ZeRO splits an op's weights. Experts have their own number."""
        copies = self.layout.expert_dp if op.component == "experts" else self.layout.copies
        return copies // self.layout.instances

    def gathered(self, stage: Stage) -> dict[Place, int]:
        """Return the bytes of the weights that FSDP has gathered, at each place of the step.

        A running layer is gathered, and the next one is prefetched, the first one by the head. In the loss, no layer is
        gathered (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py). The weights outside the layers (embedding
        and head) stay gathered until the end of the backward pass, unless they are units of their own. With pipeline
        stages, the weights of the whole stage are gathered.
        """
        if self.layout.zero != 3:
            return dict.fromkeys(_PLACES, 0)
        outside, layers = self.gathered_outside(stage), self.gathered_layers(stage)
        return {place: outside[place] + sum(sizes) for place, sizes in layers.items()}

    def gathered_outside(self, stage: Stage) -> dict[Place, int]:
        """Return the bytes of the weights outside the layers that FSDP has gathered, at each place of the step."""
        before, after = (
            sum(self.weight_bytes(op) for chunk in stage.chunks for op in (chunk.after if end else chunk.before))
            for end in (False, True)
        )
        if self.recipe.table_units:
            tied = any(op.tied for chunk in stage.chunks for op in chunk.after)
            return {"loss": 0, "after": before + after if tied else after, "layer": 0, "before": before, "optimizer": 0}
        return dict.fromkeys(_PLACES, before + after) | {"optimizer": 0}

    def gathered_layers(self, stage: Stage) -> dict[Place, list[int]]:
        """Return the bytes of each layer that FSDP has gathered, at each place of the step, with the largest first."""
        sizes = sorted(
            (sum(map(self.weight_bytes, layer)) for chunk in stage.chunks for layer in chunk.layers), reverse=True
        )
        counts: dict[Place, int] = {"loss": 0, "after": 1, "layer": 2, "before": 0, "optimizer": 0}
        if self.gathers_stage:
            counts = {place: 0 if place == "optimizer" else len(sizes) for place in counts}
        return {place: sizes[:count] for place, count in counts.items()}

    def stream(self) -> int:
        """Return the bytes of the residual stream of one micro-batch on this GPU.

        A fully recomputed layer saves only this stream. In the backward pass of each sublayer, the gradient of the
        stream is also allocated.
        """
        tokens = -(-self.workload.batch * self.workload.query_len // self.layout.cp)
        if self.layout.sp:
            tokens = -(-tokens // self.layout.tp)
        return bytes_of(tokens * self.spec.hidden_size, self.formats.activations)

    def checkpoint(self, layer: tuple[Op, ...]) -> int:
        """Return the bytes that a layer saves in its forward pass for its backward pass."""
        return checkpoint_bytes(layer, self.recompute, self.stream(), self.modules)

    @property
    def modules(self) -> tuple[str, ...]:
        """The parts of a layer that the backward pass computes again."""
        return (*self.recipe.recompute, *(["core_attn"] if self.recompute == "selective" else []))

    def checkpoints(self, chunk: Chunk) -> list[int]:
        """Return, for each layer of a chunk, the bytes that it saves (see `checkpoint`)."""
        kinds = {id(layer): layer for layer in chunk.layers}
        sizes = {kind: self.checkpoint(layer) for kind, layer in kinds.items()}
        return [sizes[id(layer)] for layer in chunk.layers]

    def saved(self, chunk: Chunk) -> int:
        """Return the bytes that a chunk saves in the forward pass of one micro-batch, without logits."""
        outside = sum(op.saved_bytes for op in (*chunk.before, *chunk.after) if op.kind != "loss")
        return outside + sum(self.checkpoints(chunk))


def _is_head(op: Op) -> bool:
    return op.component == "lm_head" and op.kind == "matmul"
