"""Encoder-decoder models. The layers of the decoder attend to the output of an encoder.

Dimensions: B batch, S length, E encoder length, D hidden size, V vocabulary size.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from llmbench.errors import CannotRunError
from llmbench.model.cache import Cache
from llmbench.model.decoder import Decoder, build_block
from llmbench.model.embeddings import EmbeddingSteps, look_up
from llmbench.model.implementations.interface import Implementation
from llmbench.model.norms import NormLayer
from llmbench.model.positions import rotations_of, tables_of
from llmbench.model.refusals import refuse_layers
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.spec.model import Embedding, ModelSpec, Stack
from llmbench.spec.position import NoPositions


class Encoder(EmbeddingSteps):
    """The encoder: its embedding, a stack of bidirectional layers, and a norm if the spec has one.

    Most encoders use the token table of the decoder. The encoder of Marian can have its own.
    """

    def __init__(self, spec: ModelSpec, stack: Stack) -> None:
        refuse_layers(spec.name, stack.layers, "encoder.")
        inner = msgspec.structs.replace(
            spec,
            name=f"the encoder of {spec.name}",
            vocab_size=stack.vocab_size or spec.vocab_size,
            hidden_size=stack.hidden_size or spec.hidden_size,
            positions=NoPositions() if stack.positions is None else stack.positions,
            embedding=Embedding(
                norm=stack.embedding_norm,
                scale=spec.embedding.scale if stack.embedding_scale is None else stack.embedding_scale,
            ),
        )
        super().__init__(inner, has_table=stack.vocab_size is not None)
        self.layers = nn.ModuleList(
            build_block(inner, stack.layers[name], index=index, where=f"encoder.layers.{name}")
            for index, name in enumerate(stack.order)
        )
        self.rotations = rotations_of(self.layers)
        self.final_norm = NormLayer(inner.hidden_size, spec.norm) if stack.final_norm else None

    def forward(
        self,
        tokens: Tensor,
        table: nn.Embedding,
        valid: Tensor | None,
        implementation: Implementation,
        dropout: float,
    ) -> Tensor:
        """Return the output [B, E, D] of the encoder for tokens [B, E].

        - `table`: the token table of the decoder.
        - `valid` [B, E]: true for real tokens. None: no token is padding.
        - `dropout`: the share of elements that dropout sets to 0.
        """
        batch, length = tokens.shape
        refuse_beyond_positions(self.spec, length)
        positions = torch.arange(length, device=tokens.device).expand(batch, -1)
        step = Step(positions, valid, True, tables_of(self.rotations, positions, length), implementation)
        step = step._replace(dropout=dropout)
        x = look_up(getattr(self, "embedding", table), tokens, self.spec.embedding.scale)
        x = self.after_look_up(x, tokens, positions, None, implementation)
        stream, shared = Residual(step.dropped(x)), None
        for block in self.layers:
            stream, shared = block(stream, step, None, shared)
        return stream.whole() if self.final_norm is None else self.final_norm(stream, implementation)


class Seq2Seq(Decoder):
    """An encoder-decoder language model, such as T5."""

    has_encoder = True

    def __init__(self, spec: ModelSpec, *, impl: str | None = None) -> None:
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
        """Return the logits [B, S, V] for the decoder's tokens [B, S], which attend to the encoder's tokens [B, E].

        - `encoder_lengths` [B]: the number of real encoder tokens in each row.
        - `cache`: also stores the keys and values of the encoder output. Later passes therefore need no encoder_tokens.

        The other arguments are those of `Decoder.forward`. Raises CannotRunError if the first pass has no
        encoder_tokens.
        """
        memory = valid = None
        if encoder_tokens is not None:
            memory, valid = self.encode(encoder_tokens, encoder_lengths)
        elif cache is None or cache.longest == 0:
            raise CannotRunError(
                "the first step of an encoder-decoder needs encoder_tokens", hint="pass encoder_tokens"
            )
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
        """Return the output [B, E, D] of the encoder for `tokens` [B, E], and a mask [B, E] that is true for real
        tokens."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
        valid = None if lengths is None else places < lengths[:, None]
        return self.encoder(tokens, self.embedding, valid, self.implementation, self.dropout_now), valid


def model_of(spec: ModelSpec, *, impl: str | None = None) -> Decoder:
    """Create the model of a spec: a Seq2Seq if the spec has an encoder, else a Decoder."""
    return Decoder(spec, impl=impl) if spec.encoder is None else Seq2Seq(spec, impl=impl)
