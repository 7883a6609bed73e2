"""Memory of one GPU in serving, and the type `Memory`, which `training.py` uses too.

Serving needs memory for the weights, the cache and the widest op. llmbench computes the peak of each pipeline stage and
reports the highest one. The allocator's rounding and fragmentation are not counted.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.sizing.dtypes import DType
from llmbench.sizing.kvcache import sequence_bytes
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.recipe import PrecisionName, served_bytes, serving_dtype
from llmbench.sizing.stages import stages
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

CONTEXT_BYTES = 500 * 2**20
"""Bytes of a CUDA context with its kernels. PyTorch's allocator does not count them, and the peak leaves them out."""

WORKSPACE_BYTES = 64 * 2**20
"""Bytes of cuBLAS's workspace on a Hopper GPU and of small collective buffers. They do not depend on the model."""

PREFILL_TOKENS = 8192
"""The largest number of tokens that an engine processes in one prefill step."""

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "kv_cache", "overhead")


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes of the GPU with the highest peak.

    peak_bytes: largest number of bytes that are allocated at one moment.
    parts_bytes: peak_bytes divided into weights, gradients, optimizer states, activations and so on.
    full_bytes: bytes of all weights, all gradients and all optimizer states, and of the activations that are saved when
        the backward pass starts. Not all of them need to exist at the peak.
    reserved_bytes: bytes that PyTorch's allocator reserves on the device. They are equal to peak_bytes, except with
        plain cross-entropy. Then the bytes of the bf16 logits are added: the logits are freed before the peak, but the
        allocator cannot reuse their block for the larger fp32 tensors of the loss.
    approximate: reasons why these figures are not exact, in addition to the spec's own reasons.
    moment: name of the op that runs at the peak.
    stage: number of the pipeline stage with the highest peak, from 0. stage_peaks: peak bytes of every stage.
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
    approximate: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Bytes that a device must have: the bytes that the allocator reserves, and the CUDA context."""
        return self.reserved_bytes + CONTEXT_BYTES


def highest_stage(peaks: list[Memory]) -> Memory:
    """Return the memory of the stage with the highest peak, together with the peaks of all stages."""
    top = max(peaks, key=lambda memory: memory.peak_bytes)
    return msgspec.structs.replace(top, stage_peaks=tuple(memory.peak_bytes for memory in peaks))


def widest_bytes(ops: list[Op]) -> int:
    """Return the input and output bytes of the widest op. The widest op is the op with the most such bytes.

    In addition to the weights, a forward pass needs at least this memory.
    """
    return max((op.read_bytes + op.written_bytes for op in ops), default=0)


def inference_memory(
    spec: ModelSpec,
    seq_len: int,
    *,
    batch: int = 1,
    layout: Layout | None = None,
    precision: PrecisionName = "bf16",
    kv_dtype: DType = "bf16",
) -> Memory:
    """Compute the memory for serving `batch` sequences of `seq_len` tokens.

    The memory is the sum of four terms: the weights (see `served_bytes`), the cache, the activations of the widest op
    of a prefill, and the fp32 logits of each sequence's last position. As in serving engines, one prefill step
    processes at most PREFILL_TOKENS tokens. An encoder always processes a whole sequence.
    """
    layout = layout or Layout()
    dtype = serving_dtype(precision)
    activations: DType = "fp32" if dtype == "fp32" else "bf16"
    length = seq_len if not spec.decodes or spec.encoder is not None else min(seq_len, PREFILL_TOKENS)
    workload = Workload(
        phase="prefill",
        batch=min(batch, max(1, PREFILL_TOKENS // length)),
        query_len=length,
        kv_len=seq_len,
        encoder_len=length,
        weight_dtype=dtype,
        activation_dtype=activations,
        kv_dtype=kv_dtype,
    )
    peaks = []
    for stage in stages(spec, lower(spec, workload, layout), layout):
        ops = stage.ops
        weights = sum(served_bytes(op, dtype) for op in ops)
        widest = widest_bytes([op for op in ops if op.name != "lm_head"])
        has_head = any(op.name == "lm_head" for op in ops)
        cache = batch * sum(sequence_bytes(op.cache, seq_len, kv_dtype, layout).total for op in ops if op.cache)
        parts = {
            "weights": weights,
            "gradients": 0,
            "optimizer": 0,
            "activations": widest,
            "logits": 4 * batch * -(-spec.vocab_size // layout.tp) if has_head else 0,
            "kv_cache": cache,
            "overhead": WORKSPACE_BYTES,
        }
        peaks.append(
            Memory(
                phase="inference",
                seq_len=seq_len,
                micro_batch=batch,
                layout=layout,
                peak_bytes=sum(parts.values()),
                parts_bytes=parts,
                full_bytes={"weights": weights, "kv_cache": cache},
                moment="prefill",
                stage=stage.index,
                stage_peaks=(),
                parameters=sum(op.parameters for op in ops),
                reserved_bytes=sum(parts.values()),
            )
        )
    return highest_stage(peaks)
