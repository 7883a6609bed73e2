"""Continue a text, also past the last position of a model with a table of learned positions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from llmbench.errors import LLMBenchError
from llmbench.model.decoder import Decoder
from llmbench.model.generation import stream
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
    """
    if not len(tokens):
        raise LLMBenchError("the prompt has no token", hint="give a prompt with at least one character")
    device, limit = model.embedding.weight.device, model.spec.position_limit
    text = tokens.tolist()
    left = count
    while left:
        read = text if limit is None or len(text) < limit else text[-(limit + 1) // 2 :]
        room = left if limit is None else min(left, limit - len(read) + 1)
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
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        value = config.get("eos_token_id") if isinstance(config, dict) else None
        values = value if isinstance(value, list) else [value]
        found = frozenset(each for each in values if type(each) is int)
        if found:
            return found
    return frozenset()
