"""Candidates that are not implementations of a whole model, and functions that find a candidate by its `--impl` name.

`compiled` is plain torch, compiled by torch.compile. `flex` is compiled FlexAttention, which builds its block mask
once. `grouped` computes a mixture of experts with torch's grouped matrix products. `rope-fused` is the implementation
`flash` with the rotary kernel of `fused`.

B batch, N query heads, S query length, T key length, H head dim, t tokens, D hidden, F intermediate, E experts, k
experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch
from torch.nn import functional as F

from llmbench.errors import CannotRunError, unknown
from llmbench.model.implementations import IMPLEMENTATIONS, described, refuse_unavailable
from llmbench.model.implementations.interface import ExpertWeights, Implementation, Mask, Scores, Seen, Traits
from llmbench.model.implementations.plain import STANDARD, activation, glu
from llmbench.spec.ffn import Activation, MoE

__all__ = [
    "COMPILED",
    "EXTRA_CANDIDATES",
    "FLEX",
    "Backend",
    "Binder",
    "binder_of",
    "check_name",
    "compiled",
    "compiled_flex",
    "forget_compiled",
    "grouped_experts",
    "implementation_of",
    "traits_of",
]

# torch.compile

COMPILED = "compiled"
"""The name of the candidate that is plain torch, compiled by torch.compile."""

Backend = str | Callable[..., Any]
"""The type of torch.compile's argument `backend`: a compiler or the name of a compiler."""


def compiled(
    function: Callable[..., Any], *, backend: Backend = "inductor", fullgraph: bool = False
) -> Callable[..., Any]:
    """Compile `function` with torch.compile, once for each input shape. The backward pass of the compiled function can
    run more than once.

    Raises CannotRunError if torch reaches its recompile limit, because torch would then run the function uncompiled.
    This function changes two settings of torch.compile for the whole process.
    """
    _configure_compiler()
    fast: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=False, fullgraph=fullgraph)

    def call(*args: Any, **options: Any) -> Any:
        try:
            return fast(*args, **options)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            limit = torch._dynamo.config.recompile_limit
            raise CannotRunError(
                f"torch.compile reached its recompile limit: it compiled one function {limit} times"
            ) from None

    return call


def _configure_compiler() -> None:
    """Forbid donated buffers, and make the recompile limit an error.

    With donated buffers, a compiled backward pass overwrites the saved activations, so that it cannot run twice. This
    function changes the default of that option, because a temporary change would fail in two cases. torch's cache would
    return code that was compiled with the other value. Other threads would not see the change, and on a GPU autograd
    runs in another thread.
    """
    functorch.donated_buffer = False
    functorch._config["donated_buffer"].default = False  # type: ignore[attr-defined]
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def forget_compiled() -> None:
    """Delete all compiled code, and reset torch's count of compilations. Without the reset, torch compiles no function
    more than eight times."""
    torch._dynamo.reset()


# FlexAttention


def compiled_flex(compiler: Callable[..., Any] = compiled) -> Implementation:
    """Return an implementation that computes attention with compiled FlexAttention, for sequences without gaps.

    The block mask is built once per pair of query length and key length. A model with `impl="flex"` builds the block
    mask in every call instead.
    """
    blocks: dict[tuple[int, int], Any] = {}

    @cache
    def fast() -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import flex_attention

        return compiler(flex_attention)

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        mask = seen.mask
        if not mask.plain or scores.sinks is not None or scores.soft_cap is not None or scores.bias is not None:
            raise CannotRunError(
                "flex can be timed only on whole sequences without sinks, soft cap and bias", hint="use sdpa"
            )
        if q.requires_grad and q.device.type == "cpu":
            raise CannotRunError("FlexAttention has no backward pass on a CPU", hint="use sdpa")
        size = q.shape[2], seen.k.shape[2]
        if size not in blocks:
            blocks[size] = None if mask.everything else _block_mask(mask, size, q.device)
        out: Tensor = fast()(
            q,
            seen.k,
            seen.v,
            score_mod=_alibi_score(scores.slopes),
            block_mask=blocks[size],
            scale=scores.scale,
            enable_gqa=seen.k.shape[1] != q.shape[1],
        )
        return out

    return STANDARD._replace(name=FLEX, attend=attend, traits=Traits())


def _block_mask(mask: Mask, size: tuple[int, int], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return mask.sees(s, t)

    return create_block_mask(allowed, None, None, *size, device=str(device))


def _alibi_score(slopes: Tensor | None) -> Any:
    if slopes is None:
        return None

    def change(score: Tensor, b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return score + slopes[h] * (t - s)

    return change


# Grouped products


def grouped_experts(x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, name: Activation) -> Tensor:
    """Compute experts without biases on tokens [t, D], and return their weighted sum [t, D].

    The tokens are sorted by expert. Then one grouped product per weight matrix (two matrices, or three with a gate)
    computes all experts. Nothing is copied to the host. The temporaries have t·k rows.
    """
    choices, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(len(experts.up), device=x.device, dtype=choices.dtype)
    ends = torch.searchsorted(choices, numbers, right=True).to(torch.int32)
    rows = x[order // chosen.shape[1]]
    up = F.grouped_mm(rows, experts.up.mT, offs=ends)
    if experts.gate is None:
        inner = activation(name)(up)
    else:
        inner = glu(F.grouped_mm(rows, experts.gate.mT, offs=ends), up, name)
    outputs = F.grouped_mm(inner, experts.down.mT, offs=ends)
    back = torch.empty_like(outputs).index_copy_(0, order, outputs).view(*chosen.shape, -1)
    return torch.bmm(weights.to(back.dtype)[:, None], back)[:, 0]


def _grouped(x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: MoE) -> Tensor:
    """Compute a mixture of experts with `grouped_experts`. Raises CannotRunError for a mixture with biases, input-side
    router weights, zero experts or an expert capacity."""
    biases = experts.gate_bias, experts.up_bias, experts.down_bias
    if any(bias is not None for bias in biases) or moe.router.on_input:
        raise CannotRunError("grouped supports no biases and no input-side router weights", hint="use standard")
    if moe.zero_experts or moe.capacity_factor is not None or moe.expert_capacity is not None:
        raise CannotRunError("grouped supports no zero experts and no expert capacity", hint="use standard")
    return grouped_experts(x, weights, chosen, experts, moe.activation)


# Names


def _rope_fused() -> Implementation:
    """Return the implementation `flash` with the rotation of `fused`, which rotates queries and keys in one launch."""
    fused = described("fused")
    return described("flash")._replace(name="rope-fused", rotate=fused.rotate, unavailable=fused.unavailable)


FLEX = "flex"

EXTRA_CANDIDATES: dict[str, Callable[[], Implementation]] = {
    FLEX: compiled_flex,
    "grouped": lambda: STANDARD._replace(name="grouped", experts=_grouped),
    "rope-fused": _rope_fused,
}
"""The functions that build the candidates of this file, by candidate name. In `profile` and `bench`, the name `flex`
means the candidate of this file, not the implementation `flex` of a model."""


def check_name(name: str) -> None:
    """Raise UnknownNameError if there is no candidate with this name."""
    known = tuple(dict.fromkeys((*IMPLEMENTATIONS, COMPILED, *EXTRA_CANDIDATES)))
    if name not in known:
        raise unknown("implementation", name, known)


def _described(name: str) -> Implementation:
    """Return the implementation that the candidate `name` uses, even if it cannot run on this machine."""
    if name == COMPILED:
        return STANDARD
    return EXTRA_CANDIDATES[name]() if name in EXTRA_CANDIDATES else described(name)


def implementation_of(name: str) -> Implementation:
    """Return the implementation that the candidate `name` uses. Raises CannotRunError if it cannot run on this
    machine."""
    return refuse_unavailable(_described(name))


def traits_of(name: str) -> Traits:
    """Return the properties of the candidate `name` that the op table needs, even if the candidate cannot run on this
    machine."""
    return _described(name).traits


Binder = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A function that takes a piece's `run(implementation, **inputs)` and returns the function `run(**inputs)`."""


def binder_of(name: str) -> Binder:
    """Return the `Binder` with which the candidate `name` computes a piece. Raises CannotRunError if the candidate
    cannot run on this machine."""
    if name == COMPILED:
        return lambda run: compiled(partial(run, STANDARD))
    implementation = implementation_of(name)
    return lambda run: partial(run, implementation)
