"""Generation of tokens. The model first reads the prompts, then adds one new token per step to each sequence.

Dimensions: B batch, S length of the longest prompt, E length of the longest encoder input, V vocabulary size.
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
from llmbench.sizing.dtypes import COLDEST
from llmbench.sizing.lengths import refuse_beyond_positions

_Sampling = tuple[float, int | None, float | None]
"""The arguments of `choose`: temperature, top_k and top_p."""


class Generated(NamedTuple):
    """The new tokens of all sequences.

    - `tokens` [B, n]: the new tokens. After the stop token, the rest of a row is filled with stop tokens.
    - `lengths` [B]: the number of new tokens in each row, up to and including the first stop token.
    """

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
    """Continue the prompts `tokens` [B, S].

    - `lengths` [B]: the number of real tokens in each row. The rest of the row is padding.
    - `encoder_tokens` [B, E], `encoder_lengths` [B]: the input of an encoder-decoder, and its number of real tokens.
      The prompts are then the first tokens of the decoder.
    - `temperature`: with 0, the most likely token is chosen. With any other number, logits are divided by this number,
      and a token is drawn at random.
    - `top_k`: draw only from the `top_k` most likely tokens.
    - `top_p`: draw only from the fewest most likely tokens whose probabilities sum to at least `top_p`.
    - `seed`: equal seeds give equal tokens.
    - `cache`: a name in CACHE_KINDS.
    - `stop_token`: the token that ends a row. Every row ends after `max_new_tokens` tokens.

    Raises SpecError and UnknownNameError for invalid arguments, UnsupportedError for a model that cannot decode token
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
    """Yield the next token [B] of each row, step by step. The generation does not end at a stop token.

    The arguments are those of `generate`. `cache` may also be a Cache that already has the first tokens of the
    sequences.
    """
    sampling = _sampling(temperature, top_k, top_p)
    count, seed = whole_number("max_new_tokens", max_new_tokens, 1), whole_seed(seed)
    weight = model.embedding.weight
    if weight.is_meta:
        raise CannotRunError(f"{model.spec.name} is on meta and has no weights", hint="build it on cpu or cuda")
    tokens = token_rows("tokens", tokens, model.spec.vocab_size, weight.device)
    lengths = row_lengths("lengths", lengths, tokens)
    batch = tokens.shape[0]
    longest = tokens.shape[1] if lengths is None else int(lengths.max())
    room = longest + count - 1  # the last token is never an input, so it needs no room
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
    """Return the encoder arguments of the first step.

    The result is empty if the model has no encoder, or if the cache already contains the encoder output.
    """
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
        raise SpecError(f"encoder_tokens must have one row per prompt: {tokens.shape[0]} rows, not {source.shape[0]}")
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
    """Check the arguments of `choose`, and return them. Raises SpecError."""
    temperature = real_number("temperature", temperature)
    if temperature != 0.0 and not COLDEST <= temperature < float("inf"):
        raise SpecError(
            f"temperature must be 0, or at least {COLDEST:.1e} and finite, not {temperature}",
            hint="with temperature 0, the most likely token is chosen",
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
    """Choose one token [B] for each row of logits [B, V]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    weights = probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def probabilities(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return the fp32 probabilities [B, V] from which tokens are drawn.

    They are softmax(logits / temperature) over the `top_k` most likely tokens. `top_p` then keeps the most likely
    tokens, up to and including the token with which the sum of probabilities reaches `top_p` (arXiv 1904.09751). The
    kept probabilities are scaled to a sum of 1.
    """
    wide = logits.to(torch.float32)
    # Subtracting the maximum first prevents an overflow when the temperature is low.
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        best = scaled.topk(top_k, dim=-1)
        scaled = torch.full_like(scaled, -torch.inf).scatter(-1, best.indices, best.values)
    weights = scaled.softmax(dim=-1)
    if top_p is None or top_p >= 1.0:
        return weights
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    chosen = torch.where(before < top_p, ordered, 0.0)
    chosen[..., 0] = ordered[..., 0]
    nucleus = torch.zeros_like(weights).scatter(-1, order, chosen)
    return nucleus / nucleus.sum(dim=-1, keepdim=True)
