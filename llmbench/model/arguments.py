"""Checks of the arguments that callers pass to a model.

Dimensions: B batch size, S sequence length.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from llmbench.errors import SpecError

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value` as an int between `least` and `most`. Raises SpecError for every other value."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):
        return int(value)
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise SpecError(f"{name} must be a whole number {bounds}, not {value!r}")


def whole_seed(seed: Any) -> int:
    """Return `seed` as an int that torch's random generators accept. Raises SpecError for every other value."""
    return whole_number("seed", seed, -(2**63), 2**64 - 1)


def dropout_share(dropout: Any) -> float:
    """Return `dropout` as a float from 0 to below 1. Raises SpecError for every other value."""
    share = real_number("dropout", dropout)
    if not 0 <= share < 1:
        raise SpecError(f"dropout must be at least 0 and less than 1, not {dropout!r}")
    return share


def real_number(name: str, value: Any) -> float:
    """Return `value` as a float. Raises SpecError if `value` is not a number."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise SpecError(f"{name} must be a number, not {value!r}")


def token_rows(name: str, tokens: Any, vocab_size: int, device: torch.device) -> Tensor:
    """Check `tokens` [B, S], and return them as int64.

    Raises SpecError if the tokens are not integers on `device`, have another shape, or are not in the vocabulary.
    """
    tokens = _integers(name, tokens, device)
    if tokens.dim() != 2 or not tokens.numel():
        raise SpecError(
            f"{name} must have the shape [rows, tokens] with at least one row and one token, not {tuple(tokens.shape)}"
        )
    least, most = (int(bound) for bound in tokens.aminmax())
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise SpecError(f"{name}: token {wrong} is not in the vocabulary, which has the tokens 0 to {vocab_size - 1}")
    return tokens


def row_lengths(name: str, lengths: Any, tokens: Tensor) -> Tensor | None:
    """Check `lengths`, the number of real tokens in each row of `tokens` [B, S], and return them as int64 [B].

    Returns None if `lengths` is None: then no row has padding. Raises SpecError for lengths that do not fit the rows.
    """
    if lengths is None:
        return None
    lengths = _integers(name, lengths, tokens.device)
    rows, most = tokens.shape
    if lengths.shape != (rows,):
        raise SpecError(f"{name} must have one number per row: the shape ({rows},), not {tuple(lengths.shape)}")
    if int(lengths.min()) < 1 or int(lengths.max()) > most:
        raise SpecError(f"{name} must be between 1 and {most}")
    return lengths


def _integers(name: str, values: Any, device: torch.device) -> Tensor:
    if not isinstance(values, Tensor):
        raise SpecError(
            f"{name} must be a tensor, not a {type(values).__name__}", hint="convert it with torch.tensor(…)"
        )
    if values.dtype not in (*_SIGNED, *_UNSIGNED):
        raise SpecError(f"{name} must be whole numbers, not {str(values.dtype).removeprefix('torch.')}")
    if values.device != device:
        raise SpecError(
            f"{name} are on {values.device}, but the model is on {device}", hint=f"move them with .to('{device}')"
        )
    return values.to(torch.int64)
