"""Workload: one step that a model computes. Layout: how the model is spread over GPUs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmbench.errors import LayoutError, SpecError
from llmbench.sizing.dtypes import DType

Phase = Literal["prefill", "decode", "train"]
Recompute = Literal["none", "selective", "every-second", "full"]
"""What backward computes again. none: nothing. selective: the score matrices (Megatron). every-second: everything but
attention's output and every second matrix product (torchtitan's selective). full: whole layers from their inputs."""


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of work. Prefill, decode and training differ only in their lengths and in having a backward pass.

    batch: sequences at once (a micro-batch in training). query_len: new tokens of each sequence. kv_len: keys that the
    last of them can see, its own included; earlier ones see fewer where attention is causal. encoder_len: tokens that
    the encoder has read (encoder-decoders only).

    masked_pairs: count all S×S pairs, also those that the mask removes, as FLOP counters do. absorbed_mla: latent
    attention computes on the latents (as engines decode) without expanding them. attention: "flash" never stores the
    scores; "standard" does. kernels: "fused" (one kernel per norm, activation and loss, as in Megatron, Liger and our
    own) or "eager" (plain torch modules). Only temporaries and saved activations differ. dense_mask: flash attention
    gets any mask that is not plainly causal as a tensor, as torch's SDPA does. on_cpu: what remains for torch runs on a
    CPU. There RMSNorm is computed step by step, and flash attention accumulates in small buffers and takes keys of
    grouped heads without expanding them. dropout: hidden and attention dropout, whose masks are saved.
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
            raise SpecError(f"kv_len: {self.kv_len} is less than query_len {self.query_len}")

    @classmethod
    def prefill(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """All tokens of `batch` sequences of `seq_len` at once."""
        return cls(phase="prefill", batch=batch, query_len=seq_len, kv_len=seq_len, encoder_len=seq_len, **more)

    @classmethod
    def decode(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """One new token for each sequence, after `seq_len` tokens that are in the cache."""
        more.setdefault("absorbed_mla", True)
        return cls(phase="decode", batch=batch, query_len=1, kv_len=seq_len + 1, encoder_len=seq_len, **more)

    @classmethod
    def train(cls, seq_len: int, batch: int = 1, **more: Any) -> Workload:
        """Forward and backward of one micro-batch."""
        return cls(phase="train", batch=batch, query_len=seq_len, kv_len=seq_len, encoder_len=seq_len, **more)


_ONE_GPU = "one GPU"
"""The text of a layout without parallelism."""


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is spread over tp × cp × pp × dp GPUs.

    tp: tensor parallel (Megatron). sp: sequence parallel; norms and residuals are split over the tp group too. pp:
    pipeline stages; interleave: chunks of layers per stage. dp: data parallel; zero: the training state that is split
    over it (1: optimizer, 2: gradients too, 3: weights too, as FSDP). cp: context parallel; the sequence is split. ep:
    experts are split over ep of the dp × cp ranks.
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
            raise LayoutError("layout sp: splits norms over the tp group, so it needs tp of at least 2")
        if self.interleave > 1 and self.pp == 1:
            raise LayoutError("layout interleave: needs pp of at least 2")
        if (self.dp * self.cp) % self.ep:
            raise LayoutError(f"layout ep: {self.ep} does not divide dp × cp = {self.dp * self.cp}")

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole layout."""
        return self.tp * self.cp * self.pp * self.dp

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read `tp=8,sp,pp=8,interleave=3,dp=2,ep=8,cp=1,zero=1`; raises LayoutError naming the item."""
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
