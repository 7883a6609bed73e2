"""The longest sequence that a model can process."""

from __future__ import annotations

from llmbench.errors import SpecError
from llmbench.spec.model import ModelSpec


def beyond_positions(spec: ModelSpec, tokens: int) -> str | None:
    """Return the reason why the model cannot process `tokens` tokens, or None if it can.

    Only a table of learned positions limits the length.
    """
    limit = spec.position_limit
    if limit is None or tokens <= limit:
        return None
    return f"{spec.name} cannot read {tokens:,} tokens: its {spec.positions.kind} positions cover only {limit:,}"


def refuse_beyond_positions(spec: ModelSpec, tokens: int) -> None:
    """Raise SpecError if the sequence is longer than the model's table of learned positions."""
    reason = beyond_positions(spec, tokens)
    if reason is not None:
        raise SpecError(reason, hint="choose a shorter sequence")


def refuse_beyond_context(spec: ModelSpec, tokens: int) -> None:
    """Raise SpecError if the request is longer than the context length of the model. Engines refuse such requests."""
    refuse_beyond_positions(spec, tokens)
    limit = spec.max_position_embeddings
    if limit is not None and tokens > limit:
        raise SpecError(
            f"{spec.name} has a context length of {limit:,} tokens, so engines refuse a request of {tokens:,} tokens",
            hint=f"--seq {limit} is the longest request. For a model whose context was extended, as RoPE scaling does, "
            f"say --set max_position_embeddings={tokens}",
        )
