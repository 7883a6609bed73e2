"""The `standard` implementation: plain torch, one op after another. Attention materialises its scores.

All other implementations are checked against `standard`.

Dimensions: B batch, N query heads, K KV heads, S query length, T key length, H head dim, D hidden size, F intermediate
size, E experts, k experts per token, t tokens, R rotary dims.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import UnsupportedError
from llmbench.model.implementations.interface import Attend, AttendLatent, Given, Implementation, Scores, Seen, Traits
from llmbench.model.positions import rotate
from llmbench.spec.ffn import Activation, Router
from llmbench.spec.model import Norm

Pointwise = Callable[[Tensor], Tensor]


def activation(name: Activation) -> Pointwise:
    """Return the elementwise function with this name."""
    return _ACTIVATIONS[name]


def _xielu_missing(x: Tensor) -> Tensor:
    raise UnsupportedError("the trained activation xIELU is not implemented in the PyTorch model yet")


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


def glu(gate: Tensor, up: Tensor, name: Activation) -> Tensor:
    """Compute the gated activation act(gate) · up.

    The activation of gpt-oss (`swiglu_oai`) clamps both inputs, multiplies the argument of the sigmoid by 1.702 and
    adds 1 to up.
    """
    if name == "swiglu_oai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return activation(name)(gate) * up


def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """Compute attention with materialised scores, S × T per head."""
    return attend_and_show(q, seen, scores)[0]


def attend_and_show(q: Tensor, seen: Seen, scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """Compute attention. Returns the output, and the input and the output [B, N, S, T] of the softmax.

    Masked pairs have the smallest finite number in the input of the softmax. Sinks add a column to the input. The
    softmax runs in fp32. If the input format is wider than fp32, the softmax runs in the input format.
    """
    k, v, mask = seen.k, seen.v, seen.mask
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    logits = torch.matmul(q, k.transpose(-1, -2)) * scores.scale
    if scores.soft_cap is not None:
        logits = scores.soft_cap * torch.tanh(logits / scores.soft_cap)
    added = scores.added(mask)
    if added is not None:
        logits = logits + added
    if not mask.everything:
        # Masked scores are set to a finite number, not to -inf. A padded query may see no key, and a softmax over only
        # -inf would give NaN.
        logits = logits.masked_fill(~mask.allowed(), torch.finfo(logits.dtype).min)
    if scores.sinks is not None:
        column = scores.sinks.to(logits.dtype)[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat((logits, column), dim=-1)
    weights = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(q.dtype)
    if scores.sinks is not None:
        weights = weights[..., :-1]
    kept = F.dropout(weights, scores.dropout) if scores.dropout else weights
    return torch.matmul(kept, v), logits, weights


def latent_by(attend: Attend) -> AttendLatent:
    """Return a function that computes absorbed latent attention with the attention function `attend`.

    The cache rows become the keys of a single head. The latents in the rows become the values of this head. The N·S
    queries of all heads become queries of this head, so that no row is copied per head.
    """

    def attend_latent(q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor:
        rows, mask = seen.k, seen.mask
        B, N, S, C = q_latent.shape
        q = torch.cat((q_latent, q_rope), dim=-1).reshape(B, 1, N * S, -1)
        mask = mask._replace(queries=mask.queries.repeat(1, N), plain=False)
        if scores.bias is not None:
            scores = scores._replace(bias=scores.bias.expand(-1, N, -1, -1).reshape(-1, 1, N * S, rows.shape[2]))
        return attend(q, Given(rows, rows[..., :C], mask), scores).reshape(B, N, S, C)

    return attend_latent


def norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Compute the norm. The statistics are in fp32, and the result has the format of the input.

    With `unit_offset`, the result is multiplied by 1 + weight in fp32 (Gemma).
    """
    x = x if residual is None else x + residual
    if weight is not None and weight.dim() > 1:  # each head has its own weight: weight [N, W], x [B, S, N, W]
        return _normed(x, None, None, norm) * weight + (0 if bias is None else bias), x
    if norm.unit_offset and weight is not None and norm.kind == "rmsnorm" and bias is None:
        return OffsetRMSNorm.apply(x, weight, norm.eps), x
    if norm.unit_offset and weight is not None:
        out = _normed(x.float(), None, None, norm) * (1.0 + weight.float())
        return (out if bias is None else out + bias.float()).to(x.dtype), x
    return _normed(x, weight, bias, norm), x


def _normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Tensor:
    match norm.kind:
        case "layernorm":
            return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
        case "rmsnorm":
            out = F.rms_norm(x, x.shape[-1:], weight, norm.eps)  # rms_norm computes in fp32 for every format of x
            return out if bias is None else out + bias
        case _:
            assert_never(norm.kind)


class OffsetRMSNorm(torch.autograd.Function):
    """RMSNorm whose weight has an offset of 1: x / rms(x) · (1 + weight), in fp32.

    For the backward pass, this function saves x and one number per row. Without this function, autograd would save two
    fp32 copies of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normalised x, in the number format of x."""
        wide = x.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd * (1.0 + weight.float())).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and weight.

        With n = x / rms(x): dn = dy · (1 + weight); dx = (dn - n · mean(dn · n)) / rms(x); dweight = Σ dy · n.
        """
        x, weight, rstd = ctx.saved_tensors
        grad = grads[0].float()
        normed = x.float() * rstd
        inner = grad * (1.0 + weight.float())
        dx = (inner - normed * (inner * normed).mean(-1, keepdim=True)) * rstd
        dweight = (grad * normed).flatten(0, -2).sum(0)
        return dx.to(x.dtype), dweight.to(weight.dtype), None


def rotate_both(q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Rotate the queries, then the keys."""
    return rotate(q, tables, interleaved=interleaved), rotate(k, tables, interleaved=interleaved)


def route(logits: Tensor, top_k: int, correction: Tensor | None, router: Router) -> tuple[Tensor, Tensor]:
    """Return the weights and indices of the selected experts, from the fp32 logits of all experts."""
    if router.scores == "softmax_topk":
        top, chosen = logits.topk(top_k, dim=-1)
        return top.softmax(-1) * router.scale, chosen
    if router.scores == "sparsemixer":
        weights, chosen = _mixed(logits, top_k, router)
        return weights * router.scale, chosen
    afterwards = router.scores == "sigmoid_topk"
    scores = logits if afterwards else logits.sigmoid() if router.scores == "sigmoid" else logits.softmax(-1)
    ranked = scores if correction is None else scores + correction
    chosen = _in_groups(ranked, router, balanced=correction is not None).topk(top_k, dim=-1, sorted=False).indices
    weights = scores.gather(-1, chosen)
    weights = weights.sigmoid() if afterwards else weights
    if router.normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * router.scale, chosen


def _mixed(logits: Tensor, top_k: int, router: Router) -> tuple[Tensor, Tensor]:
    """Select experts as Phi-3.5-MoE does, without the noise that its router adds in training.

    Each step selects the expert with the highest logit among the experts that are not selected yet. The weight of this
    expert comes from a softmax over these experts. Experts whose logits are far below the highest logit are left out of
    the softmax.
    """
    unselected, selections = logits, []
    for _ in range(top_k):
        best, chosen = unselected.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * router.jitter
        selections.append((unselected.masked_fill(far, float("-inf")).softmax(-1).gather(-1, chosen), chosen))
        unselected = unselected.scatter(-1, chosen, float("-inf"))
    return torch.cat([weight for weight, _ in selections], -1), torch.cat([chosen for _, chosen in selections], -1)


def _in_groups(ranked: Tensor, router: Router, *, balanced: bool) -> Tensor:
    """Mask the scores so that only experts in the best groups can be selected.

    With `balanced`, a group is ranked by the sum of its two best experts, as in DeepSeek-V3, whose router has a
    correction. Otherwise a group is ranked by its best expert (DeepSeek-V2).
    """
    if router.n_group == 1:
        return ranked
    groups = ranked.unflatten(-1, (router.n_group, -1))
    best = groups.topk(2, dim=-1).values.sum(-1) if balanced else groups.amax(-1)
    in_best = torch.zeros_like(best).scatter_(-1, best.topk(router.topk_group, dim=-1, sorted=False).indices, 1.0)
    return groups.masked_fill(in_best[..., None] == 0, float("-inf") if balanced else 0.0).flatten(-2)


STANDARD = Implementation(
    "standard", Traits(materialises_scores=True), attend, latent_by(attend), norm, rotate_both, glu, route
)
IMPLEMENTATIONS = {"standard": STANDARD}
