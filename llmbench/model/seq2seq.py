"""Encoder-decoders: an encoder stack beside the decoder, whose layers attend to its output.

B batch, S length, E encoder length, D hidden, V vocabulary.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.model.attention import Step
from llmbench.model.decoder import Block, Decoder, refuse_layers
from llmbench.model.implementations.interface import Implementation
from llmbench.model.norms import NormLayer, Residual
from llmbench.model.positions import rotations_of, tables_of
from llmbench.model.state import Cache
from llmbench.spec.model import ModelSpec, Stack
from llmbench.spec.position import LearnedPositions, NoPositions, SinusoidalPositions


class Encoder(nn.Module):
    """A stack of bidirectional layers and a norm. Its tokens are embedded by the decoder's table."""

    def __init__(self, spec: ModelSpec, stack: Stack) -> None:
        super().__init__()
        if stack.vocab_size is not None or stack.hidden_size is not None or stack.embedding_norm:
            raise UnsupportedError(f"{spec.name}: an encoder with embeddings of its own is sized, not built yet")
        positions = NoPositions() if stack.positions is None else stack.positions
        if isinstance(positions, (LearnedPositions, SinusoidalPositions)):
            raise UnsupportedError(f"{spec.name}: an encoder with a table of positions is sized, not built yet")
        refuse_layers(spec.name, stack.layers, "encoder.")
        inner = msgspec.structs.replace(spec, positions=positions)
        self.layers = nn.ModuleList(
            Block(inner, stack.layers[name], index=index, where=f"encoder.layers.{name}")
            for index, name in enumerate(stack.order)
        )
        self.rotations = rotations_of(self.layers)
        self.final_norm = NormLayer(spec.hidden_size, spec.norm) if stack.final_norm else None

    def forward(self, x: Tensor, valid: Tensor | None, implementation: Implementation) -> Tensor:
        """[B, E, D] to [B, E, D]; `valid` [B, E] says which tokens are real."""
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        step = Step(positions, valid, True, tables_of(self.rotations, positions, x.shape[1]), implementation)
        stream, shared = Residual(x), None
        for block in self.layers:
            stream, shared = block(stream, step, None, shared)
        return stream.whole() if self.final_norm is None else self.final_norm.read(stream, implementation)[0]


class Seq2Seq(Decoder):
    """An encoder-decoder language model (T5)."""

    has_encoder = True

    def __init__(self, spec: ModelSpec, *, impl: str = "sdpa") -> None:
        super().__init__(spec, impl=impl)
        assert spec.encoder is not None
        self.encoder = Encoder(spec, spec.encoder)

    def forward(
        self,
        tokens: Tensor,
        encoder_tokens: Tensor | None = None,
        *,
        encoder_lengths: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        token_types: Tensor | None = None,
        last_only: bool = False,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, V] of the decoder's tokens [B, S] after the encoder's [B, E].

        encoder_lengths [B]: how many of each row's encoder tokens are real. With a cache, the encoder's keys and values
        stay in it, and later steps go without its tokens. The rest is as in Decoder.
        """
        memory = valid = None
        if encoder_tokens is not None:
            memory, valid = self.encode(encoder_tokens, encoder_lengths)
        elif cache is None or cache.longest == 0:
            raise CannotRunError("an encoder-decoder needs encoder_tokens at its first step")
        return self.run(
            tokens,
            cache,
            lengths,
            token_types,
            last_only=last_only,
            targets=targets,
            memory=memory,
            memory_valid=valid,
        )

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, E, D] of its tokens [B, E], and which of them are real."""
        steps = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
        valid = None if lengths is None else steps < lengths[:, None]
        x = self.looked_up(tokens)
        return self.encoder(x, valid, self.implementation), valid


def model_of(spec: ModelSpec, *, impl: str = "sdpa") -> Decoder:
    """The model that a spec describes: with an encoder where it has one."""
    return Decoder(spec, impl=impl) if spec.encoder is None else Seq2Seq(spec, impl=impl)
