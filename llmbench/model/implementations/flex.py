"""Attention through torch's FlexAttention.

Dimensions: B batch, N query heads, K KV heads, S query length, T key length, H head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.errors import CannotRunError
from llmbench.model.implementations.interface import Scores, Seen, Traits
from llmbench.model.implementations.plain import STANDARD, latent_by
from llmbench.model.implementations.sdpa import refuse_dropout


def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """Compute attention with torch's FlexAttention.

    FlexAttention has no attention sinks. If the scores have sinks, its output is scaled afterwards. The factor is
    computed from the log-sum-exp that FlexAttention returns.
    """
    if q.is_meta:
        raise CannotRunError("impl flex does not run on meta tensors", hint="use standard or sdpa")
    refuse_dropout(scores, "flex")
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    k, v, mask = seen.k, seen.v, seen.mask
    bias = scores.added(mask)

    def allowed(b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return mask.sees(mask.queries[b, s], mask.keys[b, t])

    def change(score: Tensor, b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if scores.soft_cap is not None:
            score = scores.soft_cap * torch.tanh(score / scores.soft_cap)
        if bias is not None:
            score = score + bias[b if bias.shape[0] > 1 else 0, h, s, t]
        return score

    block_mask = create_block_mask(allowed, q.shape[0], None, q.shape[2], k.shape[2], device=str(q.device))
    changes = scores.soft_cap is not None or bias is not None
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
    share = torch.sigmoid(aux.lse - scores.sinks.to(aux.lse.dtype)[None, :, None])
    return out * share[..., None].to(out.dtype)


FLEX = STANDARD._replace(
    name="flex",
    traits=Traits(higher_order="flex_attention"),
    attend=attend,
    attend_latent=latent_by(attend),
    note="without torch.compile, flex computes plain matrix products: use it to check results, not speed",
)
IMPLEMENTATIONS = {"flex": FLEX}
