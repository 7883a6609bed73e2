"""Two implementations with our Triton kernels: `flash` uses them for attention, `fused` for every step that has a
kernel.

The kernels run on a GPU, on meta and fake tensors, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1). On a CPU
without the interpreter, `flash` uses torch's flash kernel for CPUs, and `llmbench model` prints a note about it.
`fused` cannot run there.

Dimensions: B batch, N query heads, K KV heads, S query length, T key length, H head dim, C latent width, R rotary dims.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import CannotRunError, install_hint
from llmbench.model.implementations.interface import ExpertWeights, Mask, Scores, Seen, Slots, Traits
from llmbench.model.implementations.plain import STANDARD, latent_by
from llmbench.model.implementations.sdpa import dense_mask, refuse, refuse_dropout
from llmbench.spec.ffn import Activation, MoE, Router
from llmbench.spec.model import Norm

TRITON = find_spec("triton") is not None
if TRITON:
    # torch counts FLOPs only of ops that are registered when counting starts, so all kernels are imported here.
    from llmbench.kernels.attention.attention import attention
    from llmbench.kernels.decoding.attention import decode_attention
    from llmbench.kernels.decoding.latent import mla_decode
    from llmbench.kernels.experts.mixture import moe as moe_kernel
    from llmbench.kernels.experts.routing import SCORES, moe_routing
    from llmbench.kernels.loss.linear import linear_cross_entropy
    from llmbench.kernels.norm.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
    from llmbench.kernels.pointwise.glu import ACTIVATIONS
    from llmbench.kernels.pointwise.glu import glu as glu_kernel
    from llmbench.kernels.pointwise.rope import rope

MOST_QUERIES = 8
"""The most new tokens per sequence for which the decode kernels are used. With more tokens, the attention kernel is
faster."""


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


NO_MEANING = (
    "Triton's interpreter ran the kernels (TRITON_INTERPRET=1): the results are valid, the times have no meaning."
)
"""The first sentence above times of interpreted kernels."""


def on_a_cpu() -> str:
    """Return a note for the output of a command. The note says which code replaces the Triton kernels on a CPU."""
    if interpreted():
        return NO_MEANING.rstrip(".")
    return "flash attention is torch's own kernel on a CPU; our kernels need a GPU"


def run_kernels(x: Tensor) -> bool:
    """Return whether the Triton kernels run on tensors like x.

    Raises CannotRunError if the kernels should run, but Triton is not installed.
    """
    runs = x.device.type != "cpu" or interpreted()
    if runs and not TRITON:
        raise CannotRunError("the kernels need Triton", hint=f"{install_hint('gpu')}, or use standard")
    return runs


def _called(kernel: Callable[..., Any], impl: str, *args: Any, **options: Any) -> Any:
    """Call a kernel and return its result.

    Raises CannotRunError with the kernel's message if the kernel does not support the shapes or formats.
    """
    try:
        return kernel(*args, **options)
    except ValueError as problem:
        raise CannotRunError(f"impl {impl}: {problem}", hint="use sdpa or standard") from None


def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """Compute flash attention over whole sequences, or decode attention that reads a cache in place."""
    refuse_dropout(scores, "flash")
    if not run_kernels(q):
        return _on_cpu(q, seen, scores)
    if scores.bias is not None:
        raise CannotRunError("impl flash does not support a bias on scores", hint="use sdpa or standard")
    if seen.slots is not None and q.shape[2] <= MOST_QUERIES:
        return _decode(q, seen.slots, seen.mask, scores)
    if seen.mask.plain:
        return _whole(q, seen.k, seen.v, seen.mask, scores)
    return _packed(q, seen.k, seen.v, seen.mask, scores)


def _options(scores: Scores) -> dict[str, Any]:
    return {
        "scale": scores.scale,
        "soft_cap": scores.soft_cap,
        "sinks": scores.sinks,
        "slopes": scores.slopes,
    }


def _whole(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """Compute attention over sequences of equal length without gaps.

    With chunked attention, a query sees only keys of its own chunk, so the kernel gets each chunk as a sequence of its
    own.
    """
    options = _options(scores) | {"causal": mask.causal, "window": mask.window}
    batch, _, length, _ = q.shape
    if mask.chunk is None or length <= mask.chunk:
        out: Tensor = _called(attention, "flash", q, k, v, **options)[0]
        return out
    starts = [b * length + s for b in range(batch) for s in range(0, length, mask.chunk)] + [batch * length]
    ends = torch.tensor(starts, dtype=torch.int32, device=q.device)
    packed = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    where = {"query_starts": ends, "key_starts": ends, "max_queries": mask.chunk, "max_keys": mask.chunk}
    out = _called(attention, "flash", *packed, **where, **options)[0]
    return out.unflatten(0, (batch, length)).transpose(1, 2)


def _packed(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """Compute attention over sequences of different lengths, or over their chunks, packed one after the other.

    Keys of empty slots are left out, and the remaining keys are sorted by position. Padded queries are left out too,
    and their outputs are 0. The lengths of the sequences are computed on the host.
    """
    rows = torch.arange(q.shape[0], device=q.device)[:, None]
    far = torch.iinfo(mask.keys.dtype).max
    order = mask.keys.masked_fill(mask.keys < 0, far).argsort(dim=1)
    keys = mask.keys.gather(1, order)
    # With a causal mask, a window or ALiBi, the last real query is at the position of the last key. A query at a later
    # position is padding. With other masks, the positions of queries and keys may be unrelated, as in cross-attention,
    # so no query is left out.
    if mask.causal or mask.window is not None or scores.slopes is not None:
        real_queries = mask.queries <= mask.keys.amax(1, keepdim=True)
    else:
        real_queries = torch.ones_like(mask.queries, dtype=torch.bool)
    chunks = 1 if mask.chunk is None else int(mask.queries.amax()) // mask.chunk + 1
    query_sequence, key_sequence = (
        rows * chunks + positions.clamp(min=0) // (mask.chunk or far) for positions in (mask.queries, keys)
    )
    queries = torch.bincount(query_sequence[real_queries], minlength=len(q) * chunks)
    real_keys = (keys >= 0) & (queries[key_sequence] > 0)
    packed_out = _called(
        attention,
        "flash",
        q.transpose(1, 2)[real_queries],
        *(x.transpose(1, 2).flatten(0, 1)[(rows * keys.shape[1] + order)[real_keys]] for x in (k, v)),
        query_starts=_starts(queries),
        key_starts=_starts(torch.bincount(key_sequence[real_keys], minlength=len(q) * chunks)),
        max_queries=q.shape[2],
        max_keys=keys.shape[1],
        causal=mask.causal,
        window=mask.window,
        **_options(scores),
    )[0]
    out = packed_out.new_zeros(*real_queries.shape, *packed_out.shape[1:])
    return out.index_put((real_queries,), packed_out).transpose(1, 2)


def _starts(sizes: Tensor) -> Tensor:
    """Return the start of each packed sequence, followed by the end of the last sequence."""
    return F.pad(sizes.cumsum(0), (1, 0)).to(torch.int32)


def _decode(q: Tensor, slots: Slots, mask: Mask, scores: Scores) -> Tensor:
    """Compute attention of a few new tokens. The kernel reads the cache in place."""
    scales = {}
    if slots.key_scales is not None and slots.value_scales is not None:
        scales = {"k_scales": slots.key_scales[..., 0], "v_scales": slots.value_scales[..., 0]}
    out: Tensor = _called(
        decode_attention,
        "flash",
        q,
        slots.keys,
        slots.values,
        slots.lengths,
        table=slots.table,
        query_positions=mask.queries,
        ring=slots.ring,
        causal=mask.causal,
        window=_window(slots, mask),
        chunk=mask.chunk,
        **_options(scores),
        **scales,
    )
    return out


def _window(slots: Slots, mask: Mask) -> int | None:
    """Return the window of the mask.

    A layer with chunked attention and no window stores only one chunk of tokens, in a ring. The kernel needs a window
    for a ring, so the window is then the length of the chunk.
    """
    return mask.chunk if slots.ring and mask.window is None else mask.window


_latent_on_cpu = latent_by(lambda q, seen, scores: _on_cpu(q, seen, scores))


def attend_latent(q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """Compute absorbed latent attention of a few new tokens. The latents come from a cache or from tensors."""
    refuse_dropout(scores, "flash")
    if not run_kernels(q_latent):
        return _latent_on_cpu(q_latent, q_rope, seen, scores)
    if scores.bias is not None:
        raise CannotRunError("impl flash does not support sparse (indexer) MLA", hint="use sdpa or standard")
    if q_latent.shape[2] > MOST_QUERIES:
        raise CannotRunError(
            f"impl flash supports absorbed MLA for at most {MOST_QUERIES} new tokens",
            hint="use the expanded form (set_latent_form)",
        )
    if torch.is_grad_enabled() and q_latent.requires_grad:
        raise CannotRunError(
            "impl flash has no backward pass for absorbed MLA", hint="train with the expanded form (set_latent_form)"
        )
    width, mask, slots = q_latent.shape[-1], seen.mask, seen.slots
    where: dict[str, Any] = {"query_positions": mask.queries, "causal": mask.causal, "window": mask.window}
    if slots is None:
        rows = seen.k[:, 0]
        where["key_positions"] = mask.keys
    else:
        heads = 1 if slots.table is None else 2
        rows = slots.keys.select(heads, 0)
        where |= {"lengths": slots.lengths, "table": slots.table, "ring": slots.ring}
        if slots.key_scales is not None:
            where["scales"] = slots.key_scales.select(heads, 0)
    out: Tensor = _called(
        mla_decode, "flash", q_latent, q_rope, rows[..., :width], rows[..., width:], scale=scores.scale, **where
    )
    return out


def _on_cpu(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """Compute attention with torch's flash kernel for CPUs."""
    refuse(scores, "flash on a CPU")
    k, v, mask = seen.k, seen.v, seen.mask
    if q.shape[-1] != v.shape[-1]:
        raise CannotRunError("impl flash on a CPU needs keys and values of equal width", hint="use sdpa")
    dense = dense_mask(q, mask, scores)
    if dense is not None and dense.dtype == torch.bool:
        dense = torch.zeros_like(dense, dtype=q.dtype).masked_fill_(~dense, -math.inf)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, dense is None and mask.causal, attn_mask=dense, scale=scores.scale
    )[0]
    return out


def norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Compute the norm in one kernel, and also the residual sum if there is one."""
    match norm.kind:
        case "rmsnorm":
            plain, added = rms_norm, add_rms_norm
        case "layernorm":
            plain, added = layer_norm, add_layer_norm
        case _:
            assert_never(norm.kind)
    options = {"eps": norm.eps, "unit_offset": norm.unit_offset}
    if residual is None:
        return _called(plain, "fused", x, weight, bias, **options), x
    both: tuple[Tensor, Tensor] = _called(added, "fused", x, residual, weight, bias, **options)
    return both


def rotate(q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys in one kernel."""
    cos, sin = (table.squeeze(1) for table in tables)
    rotated = _called(rope, "fused", q.transpose(1, 2), k.transpose(1, 2), cos, sin, interleaved=interleaved)
    return rotated[0].transpose(1, 2), rotated[1].transpose(1, 2)


def glu(gate: Tensor, up: Tensor, name: Activation) -> Tensor:
    """Compute the gated activation act(gate) · up in one kernel."""
    _refuse_activation(name, ACTIVATIONS)
    out: Tensor = _called(glu_kernel, "fused", gate, up, name)
    return out


def _refuse_activation(name: str, known: dict[str, int]) -> None:
    if name not in known:
        raise CannotRunError(
            f"impl fused does not support the activation {name}", hint=f"choose from {', '.join(known)}, or use flash"
        )


def route(logits: Tensor, top_k: int, correction: Tensor | None, router: Router) -> tuple[Tensor, Tensor]:
    """Select the experts of each token in one kernel."""
    if router.scores not in SCORES:
        raise CannotRunError(f"impl fused does not support router scores {router.scores}", hint="use flash")
    both: tuple[Tensor, Tensor] = _called(
        moe_routing,
        "fused",
        logits,
        top_k,
        correction,
        scores=router.scores,
        normalize=router.normalize,
        scale=router.scale,
        n_group=router.n_group,
        topk_group=router.topk_group,
    )
    return both


def experts(x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: MoE) -> Tensor:
    """Compute all experts together, on tokens sorted by expert. An expert without tokens takes no time."""
    _refuse_activation(moe.activation, ACTIVATIONS)
    if moe.router.on_input:
        if chosen.shape[1] != 1:
            raise CannotRunError(
                "impl fused cannot multiply the inputs of experts by router weights if a token has several experts",
                hint="use flash",
            )
        x, weights = x * weights.to(x.dtype), torch.ones_like(weights)
    out: Tensor = _called(moe_kernel, "fused", x, weights, chosen, *experts, activation=moe.activation)
    return out


def loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """Compute the vocabulary projection fused with the cross-entropy. The logits are never materialised."""
    out: Tensor = _called(linear_cross_entropy, "fused", x, weight, targets, bias, logit_scale=scale, soft_cap=soft_cap)
    return out


FLASH = STANDARD._replace(
    name="flash", traits=Traits(triton=True, dense_mask="on CPU"), attend=attend, attend_latent=attend_latent
)
FUSED = FLASH._replace(
    name="fused",
    traits=Traits(triton=True, fused_kernels=True),
    norm=norm,
    rotate=rotate,
    glu=glu,
    route=route,
    experts=experts,
    loss=loss,
    unavailable="" if TRITON else "impl fused needs Triton, which is not installed",
)
IMPLEMENTATIONS = {"flash": FLASH, "fused": FUSED}
