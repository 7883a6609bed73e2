"""The longest sequence that a model can read."""

from __future__ import annotations

from llmbench.errors import SpecError
from llmbench.spec.model import ModelSpec


def beyond_positions(spec: ModelSpec, tokens: int) -> str | None:
    """Why the model cannot read so many tokens; None if it can. Only a learned table of positions has an end."""
    limit = spec.position_limit
    if limit is None or tokens <= limit:
        return None
    return f"the learned positions of {spec.name} end at {limit:,} tokens: it cannot read {tokens:,}"


def refuse_beyond_positions(spec: ModelSpec, tokens: int) -> None:
    """Raise SpecError if `beyond_positions` has a reason."""
    reason = beyond_positions(spec, tokens)
    if reason is not None:
        raise SpecError(reason, hint="choose a shorter sequence")
