"""Memory of one GPU in serving, and the type `Memory`, which `training.py` uses too.

Serving needs memory for the weights, the cache and the widest op. llmbench computes the peak of each pipeline stage and
reports the highest one. The allocator's rounding and fragmentation are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from llmbench.sizing.dtypes import KVDType, is_plain
from llmbench.sizing.kvcache import sequence_bytes
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.stages import Stage, stages
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.weight_recipe import WeightRecipe

CONTEXT_BYTES = 500 * 2**20
"""Bytes of a CUDA context with its kernels. PyTorch's allocator does not count them, and the peak leaves them out."""

WORKSPACE_BYTES = 64 * 2**20
"""Bytes of cuBLAS's workspace on a Hopper GPU and of small collective buffers. They do not depend on the model."""


def cublas_workspace(compute_capability: float) -> int:
    """Return the bytes of one cuBLAS workspace of PyTorch, for a compute capability such as 9.0.

    32 MiB since Hopper (9.0), and `:4096:2:16:8` = 8.125 MiB before. Source: the default in PyTorch's
    aten/src/ATen/cuda/CublasHandlePool.cpp. Before its pull request 175344 (February 2026), Blackwell (10.x and 12.x)
    had 8.125 MiB, too.
    """
    return 32 * 2**20 if compute_capability >= 9 else (2 * 4096 + 8 * 16) * 2**10


PREFILL_TOKENS = 8192
"""The largest number of tokens that an engine processes in one prefill step."""

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "kv_cache", "overhead")


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes of the GPU with the highest peak.

    peak_bytes: largest number of bytes that are allocated at one moment.
    parts_bytes: peak_bytes divided into weights, gradients, optimizer states, activations and so on.
    full_bytes: bytes of all weights, all gradients and all optimizer states, and of the activations that are saved when
        the backward pass starts. Not all of them need to exist at the peak.
    reserved_bytes: bytes that PyTorch's allocator reserves on the device: peak_bytes and free blocks that fit no other
        tensor. With plain cross-entropy, the bf16 logits leave a block that is too small for the fp32 tensors of the
        loss. With FSDP, gathered weights have blocks of their own, so their largest size at any moment counts.
    steady_bytes: bytes that stay allocated between two steps: weights, optimizer states, library workspaces, gradients
        if they are never freed, and the last inputs of Megatron's pipeline stages.
    host_bytes: bytes of each part that the memory of the host stores.
    approximate: reasons why these figures are not exact, in addition to the spec's own reasons.
    moment: name of the op that runs at the peak.
    stage: number of the pipeline stage with the highest peak, from 0. stage_peaks: peak bytes of every stage.
    stage_steady: steady_bytes of every stage.
    parameters: trained elements on this GPU.
    """

    phase: Literal["train", "inference"]
    seq_len: int
    micro_batch: int
    layout: Layout
    peak_bytes: int
    parts_bytes: dict[str, int]
    full_bytes: dict[str, int]
    moment: str
    stage: int
    stage_peaks: tuple[int, ...]
    parameters: int
    reserved_bytes: int
    steady_bytes: int
    host_bytes: dict[str, int]
    stage_steady: tuple[int, ...] = ()
    approximate: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Bytes that a device must have: the bytes that the allocator reserves, and the CUDA context."""
        return self.reserved_bytes + CONTEXT_BYTES


def highest_stage(peaks: list[Memory]) -> Memory:
    """Return the memory of the stage with the highest peak, together with the peaks of all stages."""
    top = max(peaks, key=lambda memory: memory.peak_bytes)
    return msgspec.structs.replace(
        top,
        stage_peaks=tuple(memory.peak_bytes for memory in peaks),
        stage_steady=tuple(memory.steady_bytes for memory in peaks),
    )


def inference_memory(
    spec: ModelSpec,
    seq_len: int,
    *,
    batch: int = 1,
    layout: Layout | None = None,
    weights: str | None = None,
    kv_dtype: KVDType = "bf16",
) -> Memory:
    """Compute the memory for serving `batch` sequences of `seq_len` tokens.

    The memory is the sum of four terms: the weights, the cache, the activations of the widest op of a prefill, and the
    fp32 logits of each sequence's last position. As in serving engines, one prefill step processes at most
    PREFILL_TOKENS tokens. An encoder always processes a whole sequence.

    weights: the format of the weights, such as `gptq,bits=8`. None: the format of the published files.
    """
    return ServingRun(
        spec=spec, seq_len=seq_len, batch=batch, layout=layout or Layout(), weights=weights, kv_dtype=kv_dtype
    ).memory()


class ServingRun(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of serving: `batch` sequences of `seq_len` tokens.

    weights: the format of the weights, such as `gptq,bits=8`. None: the format of the published files.
    """

    spec: ModelSpec
    seq_len: int
    batch: int
    layout: Layout
    weights: str | None
    kv_dtype: KVDType

    def weight_recipe(self) -> WeightRecipe:
        """Return how the weights are stored."""
        from llmbench.sizing.weight_recipe import WeightRecipe  # a training step does not need it

        return WeightRecipe(self.spec, self.weights, served=True)

    @property
    def workload(self) -> Workload:
        """The largest prefill step."""
        spec, seq_len = self.spec, self.seq_len
        length = seq_len if not spec.decodes or spec.encoder is not None else min(seq_len, PREFILL_TOKENS)
        return Workload(
            phase="prefill",
            batch=min(self.batch, max(1, PREFILL_TOKENS // length)),
            query_len=length,
            kv_len=seq_len,
            encoder_len=length,
            activation_dtype="fp32" if self.weights == "fp32" else "bf16",
            kv_dtype=self.kv_dtype if is_plain(self.kv_dtype) else "bf16",  # a prefill reads no cache
        )

    def with_layout(self, layout: Layout) -> ServingRun:
        """Return the same run with another layout."""
        return msgspec.structs.replace(self, layout=layout)

    def stages(self) -> list[Stage]:
        """Return the pipeline stages. Raises LayoutError if the model cannot be divided as the layout says."""
        return stages(self.spec, lower(self.spec, self.workload, self.layout), self.layout)

    def memory(self) -> Memory:
        """Return the memory of the stage with the highest peak."""
        recipe = self.weight_recipe()
        memory = highest_stage([self.stage_peak(stage, recipe) for stage in self.stages()])
        return msgspec.structs.replace(memory, approximate=recipe.doubts)

    def stage_peak(self, stage: Stage, recipe: WeightRecipe) -> Memory:
        """Return the memory of one stage. recipe: how the weights are stored."""
        from llmbench.sizing.weights import stage_tensors  # a training step does not need it

        ops = stage.ops
        widest = widest_op(ops)
        weights = sum(count * tensor.bytes for tensor, count in stage_tensors(stage, recipe, self.layout.tp))
        cache = 0
        for op, count in stage.counts:
            if op.cache is not None:
                cache += count * sequence_bytes(op.cache, self.seq_len, self.kv_dtype, self.layout).total
        parts = {
            "weights": weights,
            "gradients": 0,
            "optimizer": 0,
            "activations": 0 if widest is None else _moved_bytes(widest),
            "logits": 4 * self.batch * self.local_vocab if has_head(ops) else 0,
            "kv_cache": self.batch * cache,
            "overhead": WORKSPACE_BYTES,
        }
        return Memory(
            phase="inference",
            seq_len=self.seq_len,
            micro_batch=self.batch,
            layout=self.layout,
            peak_bytes=sum(parts.values()),
            parts_bytes=parts,
            full_bytes={name: parts[name] for name in ("weights", "kv_cache")},
            moment="prefill",
            stage=stage.index,
            stage_peaks=(),
            parameters=sum(op.parameters for op in ops),
            reserved_bytes=sum(parts.values()),
            steady_bytes=weights + parts["kv_cache"] + WORKSPACE_BYTES,
            host_bytes={},
        )

    @property
    def local_vocab(self) -> int:
        """The number of logits per position on one GPU."""
        return -(-self.spec.vocab_size // self.layout.tp)


def has_head(ops: list[Op]) -> bool:
    """Return whether the ops contain the head."""
    return any(op.name == "lm_head" for op in ops)


def widest_bytes(ops: list[Op]) -> int:
    """Return the input and output bytes of the op with the most such bytes.

    In addition to the weights, a forward pass needs at least this memory.
    """
    return max(map(_moved_bytes, ops), default=0)


def widest_op(ops: list[Op]) -> Op | None:
    """Return the op with the most input and output bytes, except the head. None: there is no such op."""
    return max((op for op in ops if op.name != "lm_head"), key=_moved_bytes, default=None)


def _moved_bytes(op: Op) -> int:
    return op.read_bytes + op.written_bytes
