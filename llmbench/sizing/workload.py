"""`Workload` describes one step of a model. `Layout` describes how the model is divided over GPUs."""

from __future__ import annotations

from math import gcd
from typing import Any, Literal

import msgspec

from llmbench.errors import LayoutError, SpecError
from llmbench.sizing.dtypes import DType
from llmbench.sizing.items import Reader, flag, read_items, whole_number

Phase = Literal["prefill", "decode", "train"]
Recompute = Literal["none", "selective", "every-second", "full"]
"""The activations that the forward pass does not save, so that the backward pass must compute them again.

- none: no activations are computed again.
- selective: the score matrices of attention (Megatron).
- every-second: all activations, except those of attention and the outputs of every second matrix product (torchtitan's
  selective checkpointing).
- full: all activations of a layer. They are computed again from the input of the layer.
"""


MOST_PARTS = 1_000_000
"""The largest degree of parallelism that a layout accepts."""
MOST_CHUNKS = 1_000
"""The largest number of chunks per pipeline stage that a layout accepts."""
Loss = Literal["plain", "fused", "inplace", "chunked", "linear"]
"""The implementation of the cross-entropy loss. See `lower/head.py`."""


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a model: a prefill step, a decoding step or a training step.

    batch: number of sequences. In training, it is the number of sequences of one micro-batch.
    query_len: number of new tokens per sequence.
    kv_len: number of keys that the last new token can see, including its own. With causal attention, earlier tokens see
        fewer keys.
    encoder_len: number of tokens that the encoder has read. Only encoder-decoder models use it.
    weight_dtype, activation_dtype, kv_dtype: formats of the weights, of the activations and of the KV cache.
    masked_pairs: whether the FLOPs include the score pairs that the mask hides. FLOP counters include them.
    absorbed_mla: whether latent attention computes with the cached latents directly (absorbed form), as engines do in
        decoding. If false, it first expands the latents to keys and values.
    attention: "flash" never stores the scores. "standard" stores them.
    kernels: "fused" has one kernel per norm and activation, as in Megatron, Liger and llmbench's own kernels.
        "eager" uses PyTorch's modules. Only temporaries and saved activations differ.
    dense_mask: whether flash attention reads its mask from a tensor, unless the mask is purely causal. PyTorch's SDPA
        does this.
    on_cpu: whether PyTorch's ops run on a CPU. On a CPU, RMSNorm is computed in several steps. Flash attention needs no
        large fp32 buffer, and it does not expand the keys of grouped heads.
    dropout: whether the embedding, the outputs of sublayers and the attention have dropout. The masks are saved.
    batch_first: whether flash attention computes with the batch as the first dimension, while all other layers have the
        sequence first (Megatron with Transformer Engine and FlashAttention). The projection after attention then saves
        a transposed copy of the output, which attention also saves.
    weights_before_down: whether the router's weights multiply the input of the experts' last matrix product, as in
        Megatron. Elsewhere they multiply its output.
    imbalance: number of (token, expert) pairs of this GPU, divided by the mean over its expert-parallel group.
    fp8: whether matrix products in layers save their inputs in fp8 (Transformer Engine).
    logits: number of last positions of each sequence for which the head computes logits. None: all. An engine needs one
        in a prefill. In training, the loss covers all positions.
    loss: how the loss is computed. plain: as its kernels say. fused: Megatron's fused cross-entropy. inplace: the
        gradient overwrites the logits. chunked: one chunk of tokens after another. linear: without the logits.
    frozen_head: whether the head is frozen, so that its loss computes no gradient of its weights.
    """

    phase: Phase
    batch: int = 1
    query_len: int
    kv_len: int
    encoder_len: int = 0
    weight_dtype: DType = "bf16"
    activation_dtype: DType = "bf16"
    kv_dtype: DType = "bf16"
    masked_pairs: bool = False
    absorbed_mla: bool = False
    attention: Literal["flash", "standard"] = "flash"
    kernels: Literal["fused", "eager"] = "fused"
    dense_mask: bool = False
    on_cpu: bool = False
    dropout: bool = False
    batch_first: bool = False
    weights_before_down: bool = False
    imbalance: float = 1.0
    fp8: bool = False
    logits: int | None = None
    loss: Loss = "plain"
    frozen_head: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SpecError(f"batch: must be at least 1, not {self.batch}")
        if self.query_len < 1:
            raise SpecError(f"query_len: must be at least 1, not {self.query_len}")
        if self.kv_len < self.query_len:
            raise SpecError(f"kv_len: must be at least query_len ({self.query_len}), not {self.kv_len}")
        if self.logits is not None and (self.logits < 1 or self.phase == "train"):
            raise SpecError(f"logits: must be at least 1, and cannot be set in training, not {self.logits}")

    @classmethod
    def prefill(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """Return a prefill step of `batch` sequences with `seq_len` tokens each."""
        return cls(phase="prefill", batch=batch, query_len=seq_len, kv_len=seq_len, encoder_len=seq_len, **more)

    @classmethod
    def chunk(cls, tokens: int, start: int = 0, **more: Any) -> Workload:
        """Return the prefill of `tokens` tokens of one sequence, after `start` tokens that are in the cache.

        As in an engine, the head computes the logits of the last token only.
        """
        return cls(phase="prefill", query_len=tokens, kv_len=start + tokens, logits=1, **more)

    @classmethod
    def decode(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """Return a decoding step: one new token per sequence, with `seq_len` earlier tokens in the cache."""
        more.setdefault("absorbed_mla", True)
        return cls(phase="decode", batch=batch, query_len=1, kv_len=seq_len + 1, encoder_len=seq_len, **more)

    @classmethod
    def train(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """Return the forward and backward pass of one micro-batch in training."""
        return cls(phase="train", batch=batch, query_len=seq_len, kv_len=seq_len, encoder_len=seq_len, **more)


_ONE_GPU = "one GPU"
"""The text that represents a layout without parallelism."""

_OTHER_NAMES = {
    "fsdp": "dp={},zero=3",
    "fsdp2": "dp={},zero=3",
    "gpus": "dp={},zero=3",
    "ddp": "dp={}",
    "data": "dp={}",
    "tensor": "tp={}",
    "pipeline": "pp={}",
    "expert": "ep={}",
    "context": "cp={}",
    "ulysses": "cp={}",
    "zero1": "zero=1",
    "zero2": "zero=2",
    "zero3": "zero=3",
    "vp": "interleave={}",
    "vpp": "interleave={}",
    "hsdp": "zero=3,instances={}",
}
"""Names that other programs use, and the items of a layout with the same meaning."""

_FLAGS = ("sp", "count_embedding", "count_loss")
"""The items of a layout that are on or off."""


_ADD_STAGES = "add the number of pipeline stages, for example pp=4"


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The division of a model over tp × cp × pp × dp GPUs.

    Experts have a grid of their own, as in Megatron: the tp × cp × dp GPUs of a pipeline stage are divided into ep ×
    etp × expert_dp GPUs.

    tp: number of GPUs per tensor-parallel group (Megatron).
    sp: whether sequence parallelism also splits norms and residuals over the tensor-parallel group.
    pp: number of pipeline stages.
    interleave: number of chunks of layers per pipeline stage.
    first, last: number of layers of the first and of the last pipeline stage. None: as many as the other stages
        (Megatron's --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers).
    count_embedding, count_loss: whether the embedding, or the head and its loss, counts as one layer when the layers
        are divided evenly (Megatron's --account-for-embedding-in-pipeline-split and ...-loss-...).
    stages: the layers of every chunk, in Megatron's notation (--pipeline-model-parallel-layout): `Et*3|t*4mL`. See
        `stage_plan.py`. Empty: the layers are divided as the other fields say.
    dp: number of data-parallel replicas.
    ep: number of GPUs per expert-parallel group, which splits the experts.
    etp: number of GPUs over which the matrices of each expert are split. None: as many as tp.
    cp: number of GPUs per context-parallel group, which splits the sequence.
    zero: ZeRO stage, which says what the replicas split among themselves. 0: nothing. 1: the optimizer states. 2: also
        the gradients. 3: also the weights, as in FSDP.
    instances: number of groups into which the replicas are divided for ZeRO. Each group splits the states among its own
        GPUs (Megatron's --num-distributed-optimizer-instances, the replicas of hybrid sharding in PyTorch).
    """

    tp: int = 1
    sp: bool = False
    pp: int = 1
    interleave: int = 1
    first: int | None = None
    last: int | None = None
    count_embedding: bool = False
    count_loss: bool = False
    stages: str = ""
    dp: int = 1
    ep: int = 1
    etp: int | None = None
    cp: int = 1
    zero: int = 0
    instances: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "interleave", "first", "last", "dp", "ep", "etp", "cp", "instances"):
            value = getattr(self, name)
            most = MOST_CHUNKS if name == "interleave" else MOST_PARTS
            if value is not None and not 1 <= value <= most:
                raise LayoutError(f"layout {name}: must be from 1 to {most:,}, not {value:,}")
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(f"layout zero: must be 0, 1, 2 or 3, not {self.zero}")
        if self.sp and self.tp == 1:
            raise LayoutError("layout sp: needs tp of at least 2, because it splits norms over the tp group")
        if self.zero and self.copies == 1:
            raise LayoutError(
                f"layout zero={self.zero}: needs dp or cp of at least 2, because it splits the states over these GPUs",
                hint=f"--layout dp=8,zero={self.zero}",
            )
        if self.interleave > 1 and self.pp == 1:
            raise LayoutError("layout interleave: needs pp of at least 2", hint=_ADD_STAGES)
        self._check_grid()
        self._check_stages()

    def _check_grid(self) -> None:
        gpus, grid = self.tp * self.cp * self.dp, self.ep * self.expert_tp
        if gpus % grid:
            experts = f"ep={self.ep}" if self.etp is None else f"ep={self.ep},etp={self.etp}"
            raise LayoutError(
                f"layout {experts}: tp × cp × dp = {gpus} is not divisible by ep × etp = {grid}",
                hint=f"use more replicas: {self._grids()}. The GPUs of a pipeline stage are divided into ep × etp × "
                "expert-data-parallel GPUs; without etp, etp equals tp",
            )
        if self.copies % self.instances or (self.ep > 1 and self.expert_dp % self.instances):
            copies = self.expert_dp if self.copies % self.instances == 0 else self.copies
            raise LayoutError(
                f"layout instances={self.instances}: the {copies} copies of a weight are not divisible by it"
            )
        if self.instances > 1 and not self.zero:
            raise LayoutError("layout instances: needs zero=1, 2 or 3, because it divides the GPUs of ZeRO into groups")

    def _grids(self) -> str:
        """Return the smallest numbers of replicas that suit the experts, as items of a layout."""

        def item(etp: int) -> str:
            grid = self.ep * etp
            dp = grid // gcd(grid, self.tp * self.cp)
            shown = f",etp={etp}" if self.tp > 1 or self.etp is not None else ""
            return f"dp={dp},ep={self.ep}{shown}"

        whole = " (an expert is whole on one GPU)" if self.expert_tp > 1 else ""
        return " or ".join(dict.fromkeys([f"{item(1)}{whole}", item(self.expert_tp)]))

    def _check_stages(self) -> None:
        uneven = [name for name in ("first", "last", "count_embedding", "count_loss") if getattr(self, name)]
        if uneven and self.pp == 1:
            raise LayoutError(
                f"layout {uneven[0]}: needs pp of at least 2, because it says what a stage contains", hint=_ADD_STAGES
            )
        if self.stages and uneven:
            raise LayoutError(
                f"layout {uneven[0]}: cannot be used with stages, which already lists the layers of every stage",
                hint=f"leave out {uneven[0]}",
            )
        counted = [name for name in uneven if name.startswith("count_")]
        if counted and len(counted) < len(uneven):
            raise LayoutError(
                f"layout {counted[0]}: divides the layers evenly, but first or last gives a stage another number",
                hint=f"leave out {counted[0]}, or leave out first and last",
            )

    @property
    def num_gpus(self) -> int:
        """The number of GPUs in the whole layout."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def copies(self) -> int:
        """The number of GPUs that have the same part of a weight outside the experts."""
        return self.dp * self.cp

    @property
    def expert_tp(self) -> int:
        """The number of GPUs over which the matrices of each expert are split."""
        return self.tp if self.etp is None else self.etp

    @property
    def expert_dp(self) -> int:
        """The number of GPUs that have the same part of an expert."""
        return self.tp * self.cp * self.dp // (self.ep * self.expert_tp)

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Parse a text such as `tp=8,sp,pp=8,interleave=3,dp=2,ep=8,cp=1,zero=1`.

        Raises LayoutError if an item is unknown or has a wrong value. The message names the item.
        """
        if text.strip() == _ONE_GPU:
            return cls()
        if text.strip() == "auto":
            raise LayoutError(
                "layout: llmbench does not choose the layout of a training step",
                hint="try tp=8 or dp=8,zero=3, and for several nodes tp=8,sp,pp=4,dp=2,zero=1. --device NAME says how "
                "many of these devices suffice. For serving, `llmbench fit MODEL --gpus N` divides the model",
            )
        readers: dict[str, Reader] = {name: flag if name in _FLAGS else whole_number for name in cls.__struct_fields__}
        readers["stages"] = str
        example = "tp=8,sp,pp=2,zero=1"
        return cls(**read_items(text, "layout", readers, error=LayoutError, example=example, other_names=_OTHER_NAMES))

    def __str__(self) -> str:
        parts = []
        for name, default in zip(self.__struct_fields__, self.__struct_defaults__, strict=True):
            value = getattr(self, name)
            if name in _FLAGS:
                parts += [name] if value else []
            elif value != default:
                parts.append(f"{name}={value}")
        return ",".join(parts) or _ONE_GPU
