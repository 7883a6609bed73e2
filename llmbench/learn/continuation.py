"""Continue a text, also past the last position of a model with a table of learned positions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.learn.faults import NotFiniteError
from llmbench.model.decoder import Decoder
from llmbench.model.devices import free_bytes
from llmbench.model.generation import stream
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.kvcache import kv_cache
from llmbench.spec.reading import read_bytes

__all__ = ["continuation", "stop_tokens"]


def continuation(
    model: Decoder,
    tokens: Tensor,
    *,
    count: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stops: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """Yield `count` tokens that follow the prompt `tokens` [N], or fewer if a token of `stops` is drawn.

    If the model has a table of learned positions and it is full, the model reads the last half of the text again, and
    goes on. The other arguments are those of `llmbench.model.generation.generate`, and so are the errors.
    Raises NotFiniteError for a model that computes NaN.
    """
    if not len(tokens):
        raise LLMBenchError("the prompt has no token", hint="give a prompt with at least one character")
    device, limit = model.embedding.weight.device, model.spec.position_limit
    text = tokens.tolist()
    left = count
    with _finite_logits(model, text):
        while left:
            read = text if limit is None or len(text) < limit else text[-(limit + 1) // 2 :]
            room = left if limit is None else min(left, limit - len(read) + 1)
            _refuse_without_room(model, len(read) + room - 1)
            new = stream(
                model,
                torch.tensor([read], device=device),
                max_new_tokens=room,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed + len(text) - len(tokens),
            )
            for token in new:
                number = int(token)
                if number in stops:
                    return
                text.append(number)
                left -= 1
                yield number


def _refuse_without_room(model: Decoder, tokens: int) -> None:
    """Raise CannotRunError if the device has no room for the cache of so many tokens, which is made at once."""
    weight = model.embedding.weight
    needed = kv_cache(model.spec, tokens).bytes_per_sequence // bytes_of(1, "bf16") * weight.itemsize
    room = free_bytes(weight.device)
    if room is not None and needed > room:
        needs, free = f"{needed / 2**30:,.1f} GiB", f"{room / 2**30:,.1f} GiB"
        raise CannotRunError(
            f"{model.spec.name}: the cache of {tokens:,} tokens needs {needs}, but {weight.device} has {free} free",
            hint="use a smaller --tokens",
        )


@contextmanager
def _finite_logits(model: Decoder, text: list[int]) -> Iterator[None]:
    """Raise NotFiniteError as soon as a logit is NaN or infinite, until the block ends. `text`: the tokens so far."""

    def look(_module: Any, _inputs: Any, logits: Tensor) -> None:
        if not bool(logits.isfinite().all()):
            hook.remove()  # the search for the cause runs the model again
            limit = model.spec.position_limit
            row = torch.tensor([text if limit is None else text[-limit:]], device=logits.device)
            raise NotFiniteError(model, row)

    hook = model.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def stop_tokens(folder: Path) -> frozenset[int]:
    """Return the tokens that end a text: `eos_token_id` of generation_config.json, else of config.json.

    A folder of `llmbench train` has none.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not os.path.isfile(path):
            continue
        try:
            config = msgspec.json.decode(read_bytes(path))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        value = config.get("eos_token_id") if isinstance(config, dict) else None
        values = value if isinstance(value, list) else [value]
        found = frozenset(each for each in values if type(each) is int)
        if found:
            return found
    return frozenset()
