"""The modules between the token numbers and the first layer: token table, positions, token types, norm and projection.

Dimensions: B batch, S length, W embedding width, D hidden size.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn

from llmbench.model.implementations.interface import Implementation
from llmbench.model.norms import NormLayer
from llmbench.model.positions import sinusoids
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)


class EmbeddingSteps(nn.Module):
    """The embedding modules of a stack of layers.

    The stack inherits from this class, so that its weights have the names of the op table.

    GPT-2 computes table[token] + positions[p]. LLaMA computes table[token]. BERT adds token types and a norm. OPT-350m
    and ELECTRA project a narrow table to D. Gemma scales the embedding.
    """

    def __init__(self, spec: ModelSpec, *, has_table: bool) -> None:
        """Create the modules. An encoder without its own token table uses the table of the decoder (`has_table`)."""
        super().__init__()
        self.spec = spec
        hidden, embedding = spec.hidden_size, spec.embedding
        self.embedding_width = width = embedding.size or hidden
        if has_table:
            self.add_module("embedding", nn.Embedding(spec.vocab_size, width))
        self.position_embedding = _position_table(spec.positions, hidden if embedding.positions_after else width)
        self.token_type_embedding = nn.Embedding(embedding.token_types, width) if embedding.token_types else None
        self.embedding_norm = NormLayer(width, spec.norm) if embedding.norm else None
        self.embedding_projection: nn.Linear | None = None
        if embedding.size is not None:
            self.embedding_projection = nn.Linear(width, hidden, bias=embedding.projection_bias)

    def after_look_up(
        self,
        x: Tensor,
        tokens: Tensor,
        positions: Tensor,
        token_types: Tensor | None,
        implementation: Implementation,
    ) -> Tensor:
        """Return the input [B, S, D] of the first layer for tokens [B, S] at positions [B, S].

        - `x` [B, S, W]: the rows of the token table.
        """
        if self.token_type_embedding is not None:
            x = x + self.token_type_embedding(torch.zeros_like(tokens) if token_types is None else token_types)
        added = self._position_vectors(tokens, positions, x)
        positions_after = self.spec.embedding.positions_after
        if added is not None and not positions_after:
            x = x + added
        if self.embedding_norm is not None:
            x = self.embedding_norm(x, implementation)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        return x + added if added is not None and positions_after else x

    def _position_vectors(self, tokens: Tensor, positions: Tensor, x: Tensor) -> Tensor | None:
        """Return the vectors that the position encoding adds to the embedding x.

        Returns None for position encodings that the mixers apply.
        """
        kind = self.spec.positions
        match kind:
            case LearnedPositions():
                assert self.position_embedding is not None
                rows: Tensor = self.position_embedding(_counted(positions, tokens, kind.uncounted) + kind.offset)
                return rows
            case SinusoidalPositions():
                waves = sinusoids(kind, _counted(positions, tokens, kind.uncounted), x.shape[-1], x.dtype)
                return waves if kind.uncounted is None else waves * (tokens != kind.uncounted)[..., None]
            case Rope() | Alibi() | RelativeBias() | NoPositions():
                return None
            case _:
                assert_never(kind)


class Embeddings(EmbeddingSteps):
    """The embedding modules of a Decoder."""

    embedding: nn.Embedding

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, has_table=True)

    def embed(
        self, tokens: Tensor, positions: Tensor, token_types: Tensor | None, implementation: Implementation
    ) -> Tensor:
        """Return the input [B, S, D] of the first layer for tokens [B, S] at positions [B, S]."""
        rows = look_up(self.embedding, tokens, self.spec.embedding.scale)
        return self.after_look_up(rows, tokens, positions, token_types, implementation)


def look_up(table: nn.Embedding, tokens: Tensor, scale: float) -> Tensor:
    """Return the rows [B, S, W] of a token table for tokens [B, S], multiplied by `scale`."""
    x: Tensor = table(tokens)
    return x if scale == 1.0 else x * torch.tensor(scale, dtype=x.dtype)


def _counted(positions: Tensor, tokens: Tensor, uncounted: int | None) -> Tensor:
    """Return the positions [B, S] if the token `uncounted` has no position. Its entries are -1."""
    if uncounted is None:
        return positions
    counted = tokens != uncounted
    return torch.where(counted, positions[:, :1] + counted.cumsum(-1) - 1, -1)


def _position_table(positions: Positions, width: int) -> nn.Embedding | None:
    """Create the table of learned positions. None for position encodings without a table."""
    match positions:
        case LearnedPositions():
            return nn.Embedding(positions.num_positions, width)
        case SinusoidalPositions() | Rope() | Alibi() | RelativeBias() | NoPositions():
            return None
        case _:
            assert_never(positions)
