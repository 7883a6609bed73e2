"""How long a sequence a model can read at all."""

from __future__ import annotations

from llmbench.errors import SpecError
from llmbench.spec.model import ModelSpec


def beyond_positions(spec: ModelSpec, tokens: int) -> str | None:
    """Why a sequence of so many tokens cannot be read, None where it can: a learned table of positions ends; rotary and
    added ones do not."""
    limit = spec.position_limit
    if limit is None or tokens <= limit:
        return None
    return f"the learned positions of {spec.name} end at {limit:,} tokens: it cannot read {tokens:,}"


def refuse_beyond_positions(spec: ModelSpec, tokens: int) -> None:
    """Raise SpecError where `beyond_positions` has a reason."""
    reason = beyond_positions(spec, tokens)
    if reason is not None:
        raise SpecError(reason, hint="choose a shorter sequence")
