"""Generation: a prefill of the prompts, then one new token per step for each sequence.

B batch, S the longest prompt, E the longest row of an encoder, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.errors import CannotRunError, SpecError
from llmbench.model.arguments import real_number, row_lengths, token_rows, whole_number, whole_seed
from llmbench.model.cache import Cache
from llmbench.model.decoder import Decoder
from llmbench.model.mixers import new_cache
from llmbench.sizing.lengths import refuse_beyond_positions

COLDEST = torch.finfo(torch.float32).tiny
"""The lowest temperature above 0: logits are divided by it in fp32."""

_Sampling = tuple[float, int | None, float | None]
"""temperature, top_k, top_p."""


class Generated(NamedTuple):
    """New tokens [B, n], and the length [B] of each row, its stop token included. The stop token fills the rest."""

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
    encoder_tokens: Tensor | None = None,
    encoder_lengths: Tensor | None = None,
    cache: str = "rolling",
    stop_token: int | None = None,
) -> Generated:
    """Continue prompts [B, S], whose rows have `lengths` [B] real tokens and then padding. An encoder-decoder first
    reads `encoder_tokens` [B, E] with `encoder_lengths` [B]; its prompts are the first tokens of its decoder.

    Temperature 0 takes the likeliest token. Otherwise logits are divided by it, and a token is drawn from the `top_k`
    likeliest ones, and among them from the fewest whose probability reaches `top_p`. The same seed gives the same
    tokens. `cache` names one of CACHE_KINDS. A row ends with `stop_token`; every row ends after `max_new_tokens`.

    Raises SpecError and UnknownNameError for invalid arguments, UnsupportedError for a model that does not decode token
    by token, CannotRunError for a model on meta.
    """
    if stop_token is not None:
        whole_number("stop_token", stop_token, 0, model.spec.vocab_size - 1)
    steps = stream(
        model,
        tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        lengths=lengths,
        encoder_tokens=encoder_tokens,
        encoder_lengths=encoder_lengths,
        cache=cache,
    )
    batch = tokens.shape[0]
    generated: list[Tensor] = []
    running = torch.ones(batch, dtype=torch.bool, device=tokens.device)
    counts = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
    for new in steps:
        counts = counts + running
        if stop_token is not None:
            new = torch.where(running, new, stop_token)
            running = running & (new != stop_token)
        generated.append(new)
        if stop_token is not None and not bool(running.any()):
            break
    return Generated(torch.stack(generated, dim=1), counts)


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
    encoder_tokens: Tensor | None = None,
    encoder_lengths: Tensor | None = None,
    cache: str | Cache = "rolling",
) -> Iterator[Tensor]:
    """`generate` step by step: an iterator over the next token [B] of each row. It does not stop at a stop token.
    `cache` may be a Cache that already has the beginning of the sequences."""
    sampling = _sampling(temperature, top_k, top_p)
    count, seed = whole_number("max_new_tokens", max_new_tokens, 1), whole_seed(seed)
    weight = model.embedding.weight
    if weight.is_meta:
        raise CannotRunError(f"{model.spec.name} is on meta and has no weights", hint="build it on cpu or cuda")
    tokens = token_rows("tokens", tokens, model.spec.vocab_size, weight.device)
    lengths = row_lengths("lengths", lengths, tokens)
    batch = tokens.shape[0]
    longest = tokens.shape[1] if lengths is None else int(lengths.max())
    room = longest + count - 1  # no step reads the last token
    if isinstance(cache, str):
        cache = new_cache(model.spec, batch, room, kind=cache, dtype=weight.dtype, device=weight.device)
    elif cache.lengths.shape[0] != batch:
        raise SpecError(f"the cache has {cache.lengths.shape[0]} sequences, but there are {batch} prompts")
    refuse_beyond_positions(model.spec, cache.longest + room)
    inputs = _encoder_inputs(model, tokens, encoder_tokens, encoder_lengths, cache)
    inputs |= {"tokens": tokens, "lengths": lengths}
    return _steps(model, inputs, cache, count, sampling, torch.Generator(device=tokens.device).manual_seed(seed))


def _encoder_inputs(
    model: Decoder, tokens: Tensor, encoder_tokens: Tensor | None, encoder_lengths: Tensor | None, cache: Cache
) -> dict[str, Any]:
    """The encoder's inputs of the first step; empty where there is no encoder, or its output is in the cache."""
    name = model.spec.name
    if encoder_tokens is None:
        if encoder_lengths is not None:
            raise SpecError("encoder_lengths were passed without encoder_tokens")
        if model.has_encoder and cache.longest == 0:
            raise SpecError(f"{name} has an encoder, but encoder_tokens is missing", hint="pass encoder_tokens")
        return {}
    if not model.has_encoder:
        raise SpecError(f"{name} has no encoder, but encoder_tokens were passed")
    source = token_rows("encoder_tokens", encoder_tokens, model.spec.vocab_size, tokens.device)
    if source.shape[0] != tokens.shape[0]:
        raise SpecError(f"encoder_tokens must have one row per prompt, {tokens.shape[0]}, not {source.shape[0]}")
    return {"encoder_tokens": source, "encoder_lengths": row_lengths("encoder_lengths", encoder_lengths, source)}


def _steps(
    model: Decoder, inputs: dict[str, Any], cache: Cache, count: int, sampling: _Sampling, generator: torch.Generator
) -> Iterator[Tensor]:
    for _ in range(count):
        with torch.no_grad():
            logits = model(**inputs, cache=cache, last_only=True)
            chosen = choose(logits[:, 0], *sampling, generator=generator)
        yield chosen
        inputs = {"tokens": chosen[:, None]}


def _sampling(temperature: float, top_k: int | None, top_p: float | None) -> _Sampling:
    """The checked arguments of `choose`. Raises SpecError."""
    temperature = real_number("temperature", temperature)
    if temperature != 0.0 and not COLDEST <= temperature < float("inf"):
        raise SpecError(
            f"temperature must be 0, or at least {COLDEST:.1e} and finite, not {temperature}",
            hint="temperature 0 takes the likeliest token",
        )
    if top_k is not None:
        top_k = whole_number("top_k", top_k, 1)
    if top_p is not None:
        top_p = real_number("top_p", top_p)
        if not 0.0 < top_p <= 1.0:
            raise SpecError(f"top_p must be above 0 and at most 1, not {top_p}")
    return temperature, top_k, top_p


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, *, generator: torch.Generator
) -> Tensor:
    """One token for each row of logits [B, V]: [B]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    weights = probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def probabilities(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The probabilities that tokens are drawn with, fp32 [B, V].

    softmax(logits / temperature) over the `top_k` likeliest tokens. `top_p` then keeps the likeliest of them until
    their sum reaches top_p, the token that reaches it included (arXiv 1904.09751), and scales them to a sum of 1.
    """
    wide = logits.to(torch.float32)
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / temperature  # the subtraction keeps the quotient finite
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
