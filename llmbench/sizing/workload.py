"""`Workload`, which describes one step of a model, and `Layout`, which describes how the model is spread over GPUs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmbench.errors import LayoutError, SpecError
from llmbench.sizing.dtypes import DType

Phase = Literal["prefill", "decode", "train"]
Recompute = Literal["none", "selective", "every-second", "full"]
"""Activations that the backward pass computes again.

none: no activations. selective: the score matrices (Megatron). every-second: all activations except those of attention
and the outputs of every second matrix product (torchtitan's selective). full: all activations of a layer, from the
layer's input.
"""


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of work: a prefill, a decoding step or a training step.

    batch: number of sequences (of a micro-batch in training).
    query_len: new tokens per sequence.
    kv_len: keys that the last new token can see, its own key included. With causal attention, earlier tokens see fewer.
    encoder_len: tokens that the encoder has read (encoder-decoders only).

    masked_pairs: count all S×S score pairs, also those that the mask removes, as FLOP counters do.
    absorbed_mla: latent attention uses its absorbed form, which computes on the latents, as engines do in decoding.
        False: it uses its expanded form.
    attention: "flash" never stores the scores. "standard" stores them.
    kernels: "fused" has one kernel per norm, activation and loss, as in Megatron, Liger and llmbench's own kernels.
        "eager" has plain torch modules. Only temporaries and saved activations differ.
    dense_mask: flash attention gets its mask as a tensor unless the mask is only causal, as in torch's SDPA.
    on_cpu: torch's ops run on a CPU. There RMSNorm is computed in steps, and flash attention needs no large fp32 buffer
        and does not expand the keys of grouped heads.
    dropout: hidden and attention dropout are on, and their masks are saved.
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

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SpecError(f"batch: must be at least 1, not {self.batch}")
        if self.query_len < 1:
            raise SpecError(f"query_len: must be at least 1, not {self.query_len}")
        if self.kv_len < self.query_len:
            raise SpecError(f"kv_len: must be at least query_len ({self.query_len}), not {self.kv_len}")

    @classmethod
    def prefill(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """A prefill of `batch` sequences of `seq_len` tokens, all at once."""
        return cls(phase="prefill", batch=batch, query_len=seq_len, kv_len=seq_len, encoder_len=seq_len, **more)

    @classmethod
    def decode(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """A decoding step: one new token per sequence, after `seq_len` tokens that are in the cache."""
        more.setdefault("absorbed_mla", True)
        return cls(phase="decode", batch=batch, query_len=1, kv_len=seq_len + 1, encoder_len=seq_len, **more)

    @classmethod
    def train(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """The forward and backward pass of one micro-batch in training."""
        return cls(phase="train", batch=batch, query_len=seq_len, kv_len=seq_len, encoder_len=seq_len, **more)


_ONE_GPU = "one GPU"
"""The text of a layout without parallelism."""


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is spread over tp × cp × pp × dp GPUs.

    tp: GPUs per tensor-parallel group (Megatron).
    sp: sequence parallelism, which also splits norms and residuals over the tensor-parallel group.
    pp: number of pipeline stages. interleave: chunks of layers per stage.
    dp: data-parallel replicas. zero: training state that is split over the replicas (1: optimizer states, 2: gradients
        too, 3: weights too, as in FSDP).
    cp: GPUs per context-parallel group, which split the sequence.
    ep: GPUs per expert-parallel group, which split the experts. They are a part of the dp × cp ranks.
    """

    tp: int = 1
    sp: bool = False
    pp: int = 1
    interleave: int = 1
    dp: int = 1
    ep: int = 1
    cp: int = 1
    zero: int = 0

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "interleave", "dp", "ep", "cp"):
            value = getattr(self, name)
            if not 1 <= value <= 1_000_000:
                raise LayoutError(f"layout {name}: must be at least 1, not {value}")
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(f"layout zero: must be 0, 1, 2 or 3, not {self.zero}")
        if self.sp and self.tp == 1:
            raise LayoutError("layout sp: needs tp of at least 2, because it splits norms over the tp group")
        if self.interleave > 1 and self.pp == 1:
            raise LayoutError("layout interleave: needs pp of at least 2")
        if (self.dp * self.cp) % self.ep:
            raise LayoutError(f"layout ep={self.ep}: dp × cp = {self.dp * self.cp} is not divisible by it")

    @property
    def num_gpus(self) -> int:
        """The number of GPUs of the whole layout."""
        return self.tp * self.cp * self.pp * self.dp

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read a text like `tp=8,sp,pp=8,interleave=3,dp=2,ep=8,cp=1,zero=1`. LayoutError names a wrong item."""
        fields: dict[str, Any] = {}
        if text.strip() == _ONE_GPU:
            return cls()
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in cls.__struct_fields__:
                raise LayoutError(
                    f"layout: unknown item `{key[:40]}`", hint=f"choose from {', '.join(cls.__struct_fields__)}"
                )
            if key in fields:
                raise LayoutError(f"layout: `{key}` is given twice")
            if key == "sp":
                if value not in ("", "0", "1", "true", "false"):
                    raise LayoutError(f"layout sp: must be on or off, not `{value[:40]}`", hint="like tp=8,sp")
                fields[key] = not equals or value in ("1", "true")
            elif value.isascii() and value.isdigit() and len(value) < 8:
                fields[key] = int(value)
            else:
                raise LayoutError(
                    f"layout {key}: needs a whole number, not `{value[:40]}`", hint="like tp=8,pp=2,zero=1"
                )
        return cls(**fields)

    def __str__(self) -> str:
        parts = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "sp":
                parts += ["sp"] if value else []
            elif value != (0 if name == "zero" else 1):
                parts.append(f"{name}={value}")
        return ",".join(parts) or _ONE_GPU
