"""Tokens one after another: a prefill of the prompts, then one new token a step for every sequence.

B batch, S the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.errors import CannotRunError, SpecError
from llmbench.model.decoder import Decoder
from llmbench.model.mixers import new_cache
from llmbench.model.state import Cache
from llmbench.spec.position import LearnedPositions


class Generated(NamedTuple):
    """New tokens [B, n], and how many of each row are real, the stop token included; behind them stands the stop
    token."""

    tokens: Tensor
    lengths: Tensor


def generate(
    model: Decoder,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    lengths: Tensor | None = None,
    cache: str = "rolling",
    stop_token: int | None = None,
) -> Generated:
    """Continue prompts [B, S], whose rows have `lengths` [B] real tokens and padding behind them.

    temperature 0 takes the likeliest token; otherwise logits are divided by it, and a token drawn from the `top_k`
    likeliest, and of those from the fewest that have `top_p` of the probability. The same seed gives the same tokens.
    `cache` names one of CACHE_KINDS. A row ends with `stop_token`; all do after `max_new_tokens`.
    """
    steps = stream(
        model,
        tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        lengths=lengths,
        cache=cache,
    )
    batch = tokens.shape[0]
    made: list[Tensor] = []
    going = torch.ones(batch, dtype=torch.bool, device=tokens.device)
    counts = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
    for new in steps:
        counts = counts + going
        if stop_token is not None:
            new = torch.where(going, new, stop_token)
            going = going & (new != stop_token)
        made.append(new)
        if stop_token is not None and not bool(going.any()):
            break
    return Generated(torch.stack(made, dim=1), counts)


def stream(
    model: Decoder,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    lengths: Tensor | None = None,
    cache: str | Cache = "rolling",
) -> Iterator[Tensor]:
    """`generate`, step by step: the next token [B] of every row, whatever came before. `cache` may be one that already
    holds the beginning of the sequences."""
    _check(tokens, max_new_tokens, temperature, top_k, top_p, lengths)
    held = _opened(model, tokens, lengths, max_new_tokens, cache) if isinstance(cache, str) else cache
    _check_positions(model, held, tokens, lengths, max_new_tokens)
    generator = torch.Generator(device=tokens.device).manual_seed(seed)
    return _steps(model, tokens, lengths, held, max_new_tokens, (temperature, top_k, top_p), generator)


def _steps(
    model: Decoder,
    tokens: Tensor,
    lengths: Tensor | None,
    cache: Cache,
    count: int,
    how: tuple[float, int | None, float | None],
    generator: torch.Generator,
) -> Iterator[Tensor]:
    new = tokens
    for index in range(count):
        with torch.no_grad():
            logits = model(new, cache=cache, lengths=lengths if index == 0 else None, last_only=True)
            chosen = choose(logits[:, 0], *how, generator=generator)
        yield chosen
        new = chosen[:, None]


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, *, generator: torch.Generator
) -> Tensor:
    """One token [B] of each row of logits [B, V]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    weights = probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def probabilities(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """What tokens are drawn from, fp32 [B, V].

    softmax(logits / temperature) of the `top_k` likeliest tokens; of those, likeliest first, as many as it takes to
    reach `top_p`, the one that reaches it included.
    """
    scaled = logits.to(torch.float32) / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        best = scaled.topk(top_k, dim=-1)
        scaled = torch.full_like(scaled, -torch.inf).scatter(-1, best.indices, best.values)
    weights = scaled.softmax(dim=-1)
    if top_p is None or top_p >= 1.0:
        return weights
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    kept[..., 0] = ordered[..., 0]
    nucleus = torch.zeros_like(weights).scatter(-1, order, kept)
    return nucleus / nucleus.sum(dim=-1, keepdim=True)


def _opened(model: Decoder, tokens: Tensor, lengths: Tensor | None, new: int, kind: str) -> Cache:
    longest = tokens.shape[1] if lengths is None else int(lengths.max())
    weight = model.embedding.weight
    room = longest + new - 1  # the last token is never put in
    return new_cache(model.spec, tokens.shape[0], room, kind=kind, dtype=weight.dtype, device=weight.device)


def _check(
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    lengths: Tensor | None,
) -> None:
    if tokens.dim() != 2 or not tokens.numel():
        raise SpecError("prompts must be one row of at least one token each")
    if max_new_tokens < 1:
        raise SpecError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not 0.0 <= temperature < float("inf"):
        raise SpecError(f"temperature must be 0 or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise SpecError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise SpecError(f"top_p must be above 0 and at most 1, not {top_p}")
    if lengths is not None:
        if lengths.shape != tokens.shape[:1]:
            raise SpecError(f"lengths must be one number a row: {tokens.shape[0]}")
        if int(lengths.min()) < 1 or int(lengths.max()) > tokens.shape[1]:
            raise SpecError(f"lengths must be between 1 and {tokens.shape[1]}")


def _check_positions(model: Decoder, cache: Cache, tokens: Tensor, lengths: Tensor | None, new: int) -> None:
    """A table of positions ends; rotary and added ones do not."""
    kind = model.spec.positions
    if not isinstance(kind, LearnedPositions):
        return
    longest = cache.longest + (tokens.shape[1] if lengths is None else int(lengths.max())) + new - 1
    rows = kind.num_positions - kind.offset
    if longest > rows:
        raise CannotRunError(
            f"{model.spec.name} has learned positions for {rows} tokens, not {longest}",
            hint="use a shorter prompt or fewer new tokens",
        )
