"""The ways to compute the same thing, and the one place where others plug in.

`impl=` names one Implementation for a whole model. Each function takes exactly what it can compute; what it cannot (a
soft cap in SDPA, a GPU kernel on a CPU) is refused with CannotRunError, never computed another way in silence.

B batch, N query heads, K KV heads, S query length, T key length, H head dim, D hidden, F intermediate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import CannotRunError, UnknownNameError, suggestion
from llmbench.spec.ffn import Activation


class Mask(NamedTuple):
    """Which keys a query sees. Positions are integers, [B, S] and [B, T]; a key at a negative position is empty.

    `plain`: queries and keys are the same positions, from 0 and without gaps, so that kernels may build the mask
    themselves.
    """

    queries: Tensor
    keys: Tensor
    causal: bool
    window: int | None
    chunk: int | None
    plain: bool

    def allowed(self) -> Tensor:
        """Boolean [B, 1, S, T]: the pairs that are scored."""
        query, key = self.queries[:, None, :, None], self.keys[:, None, None, :]
        seen = key >= 0
        if self.causal:
            seen = seen & (key <= query)
            if self.window is not None:
                seen = seen & (key > query - self.window)
            if self.chunk is not None:
                seen = seen & (key // self.chunk == query // self.chunk)
        elif self.window is not None:
            seen = seen & ((key - query).abs() <= self.window // 2)
        return seen

    @property
    def everything(self) -> bool:
        """Whether no pair is left out."""
        return self.plain and not self.causal and self.window is None

    @property
    def only_causal(self) -> bool:
        """Whether the mask is the plain lower triangle."""
        return self.plain and self.causal and self.window is None and self.chunk is None


class Scores(NamedTuple):
    """What is done to scores besides scaling: a soft cap, sinks [N], an added bias [B or 1, N, S, T]."""

    scale: float
    soft_cap: float | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None


class Attend(Protocol):
    """softmax(q kᵀ) v for q [B, N, S, H], k [B, K, T, H], v [B, K, T, Hv]; the result is [B, N, S, Hv]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor: ...


Pointwise = Callable[[Tensor], Tensor]
GLU = Callable[[Tensor, Tensor, Activation], Tensor]


class Implementation(NamedTuple):
    """One way to compute a model: its attention and its gated activation. Norms, rotation, experts and loss join
    here with the kernels that fuse them."""

    name: str
    attend: Attend
    glu: GLU


def activation(name: Activation) -> Pointwise:
    """The elementwise function of that name."""
    return _ACTIVATIONS[name]


def _xielu_missing(x: Tensor) -> Tensor:
    raise CannotRunError("the trained activation xIELU is not built")


_ACTIVATIONS: dict[str, Pointwise] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
    "xielu": _xielu_missing,
}


def plain_glu(gate: Tensor, up: Tensor, name: Activation) -> Tensor:
    """act(gate) * up; gpt-oss's form clamps both, sharpens the sigmoid and shifts up by one."""
    if name == "swiglu_oai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return activation(name)(gate) * up


def standard(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """The scores are held: S × T for every head. Softmax in fp32."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    logits = torch.matmul(q, k.transpose(-1, -2)) * scores.scale
    if scores.soft_cap is not None:
        logits = scores.soft_cap * torch.tanh(logits / scores.soft_cap)
    if scores.bias is not None:
        logits = logits + scores.bias
    if not mask.everything:  # not infinite: padding far from all that is real sees no key, and is to stay a number
        logits = logits.masked_fill(~mask.allowed(), torch.finfo(logits.dtype).min)
    if scores.sinks is not None:
        column = scores.sinks.to(logits.dtype)[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat((logits, column), dim=-1)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)
    if scores.sinks is not None:
        weights = weights[..., :-1]
    return torch.matmul(weights, v)


def _sdpa(backend: str | None) -> Attend:
    """torch's scaled_dot_product_attention, free in its choice or held to one backend."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
        _refuse(scores, "sdpa" if backend is None else f"sdpa-{backend}")
        dense: Tensor | None = None
        if not (mask.everything or mask.only_causal):
            dense = mask.allowed()
        if scores.bias is not None:
            bias = scores.bias.to(q.dtype)
            dense = bias if mask.everything else bias.masked_fill(~mask.allowed(), -math.inf)
        causal = dense is None and mask.causal
        grouped = k.shape[1] != q.shape[1]
        if backend is None:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=dense, is_causal=causal, scale=scores.scale, enable_gqa=grouped
            )
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }[backend]
        with sdpa_kernel(chosen):
            try:
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=dense, is_causal=causal, scale=scores.scale, enable_gqa=grouped
                )
            except RuntimeError as problem:
                reason = str(problem).splitlines()[0]
                raise CannotRunError(
                    f"impl sdpa-{backend} cannot run this on {q.device.type}: {reason}",
                    hint="use sdpa, which chooses its kernel",
                ) from None

    return attend


def _refuse(scores: Scores, name: str) -> None:
    if scores.soft_cap is not None:
        raise CannotRunError(f"impl {name} has no soft cap on scores", hint="use standard or flex")
    if scores.sinks is not None:
        raise CannotRunError(f"impl {name} has no attention sinks", hint="use standard or flex")


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """torch's FlexAttention; sinks are applied to its result by the log-sum-exp it returns."""
    if q.is_meta:
        raise CannotRunError("impl flex does not run on meta tensors", hint="use standard or sdpa")
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    queries, keys = mask.queries, mask.keys

    def seen(b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        query, key = queries[b, s], keys[b, t]
        ok = key >= 0
        if mask.causal:
            ok = ok & (key <= query)
            if mask.window is not None:
                ok = ok & (key > query - mask.window)
            if mask.chunk is not None:
                ok = ok & (key // mask.chunk == query // mask.chunk)
        elif mask.window is not None:
            ok = ok & ((key - query).abs() <= mask.window // 2)
        return ok

    def change(score: Tensor, b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if scores.soft_cap is not None:
            score = scores.soft_cap * torch.tanh(score / scores.soft_cap)
        if scores.bias is not None:
            bias = scores.bias
            score = score + bias[b if bias.shape[0] > 1 else 0, h, s, t]
        return score

    block_mask = create_block_mask(seen, q.shape[0], None, q.shape[2], k.shape[2], device=str(q.device))
    changes = scores.soft_cap is not None or scores.bias is not None
    out, aux = flex_attention(
        q,
        k,
        v,
        score_mod=change if changes else None,
        block_mask=block_mask,
        scale=scores.scale,
        enable_gqa=k.shape[1] != q.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if scores.sinks is None:
        return out
    assert aux.lse is not None
    kept = torch.sigmoid(aux.lse - scores.sinks.to(aux.lse.dtype)[None, :, None])
    return out * kept[..., None].to(out.dtype)


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """Our Triton kernel on a GPU; on a CPU torch's flash kernel for CPUs, which `llmbench model` says."""
    if q.is_cuda:
        raise CannotRunError("impl flash: the Triton kernels are not in this version", hint="use sdpa")
    _refuse(scores, "flash")
    if q.device.type == "meta":
        return F.scaled_dot_product_attention(q, k, v, is_causal=mask.causal, scale=scores.scale, enable_gqa=True)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if q.shape[-1] != v.shape[-1]:
        raise CannotRunError("impl flash on a CPU needs keys and values of one width", hint="use sdpa")
    dense = None
    if scores.bias is not None or not (mask.everything or mask.only_causal):
        dense = torch.zeros((), dtype=q.dtype, device=q.device).expand(q.shape[0], 1, q.shape[2], k.shape[2])
        dense = dense if scores.bias is None else dense + scores.bias.to(q.dtype)
        dense = dense.masked_fill(~mask.allowed(), -math.inf)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, dense is None and mask.causal, attn_mask=dense, scale=scores.scale
    )[0]
    return out


IMPLEMENTATIONS: dict[str, Implementation] = {
    name: Implementation(name, attend, plain_glu)
    for name, attend in {
        "standard": standard,
        "sdpa": _sdpa(None),
        "sdpa-flash": _sdpa("flash"),
        "sdpa-cudnn": _sdpa("cudnn"),
        "sdpa-efficient": _sdpa("efficient"),
        "flex": flex,
        "flash": flash,
    }.items()
}
"""Every way to compute a model, by the name that `impl=` takes."""


def implementation(name: str) -> Implementation:
    """The implementation of that name. Raises UnknownNameError with the nearest."""
    if name not in IMPLEMENTATIONS:
        near = suggestion(name, IMPLEMENTATIONS)
        raise UnknownNameError(
            f"no implementation `{name}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"there is {', '.join(IMPLEMENTATIONS)}",
        )
    return IMPLEMENTATIONS[name]
