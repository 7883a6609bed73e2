"""The plain layer `Block`, and the decoder, which is a stack of layers.

Modules have the names of the ops in the op table.

Dimensions: B batch, S length, D hidden size, W embedding width, V vocabulary size, E encoder length.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.cache import Cache
from llmbench.model.embeddings import Embeddings
from llmbench.model.gemma4 import Gemma4Block, PerLayerEmbeddings, is_gemma4
from llmbench.model.head import HeadLayer
from llmbench.model.implementations import implementation, preferred
from llmbench.model.norm_placements import BlockParts, LayerState, block_class, is_plain, layer_norm
from llmbench.model.norms import NormLayer
from llmbench.model.positions import Tables, rotary_table, rotations_of, tables_of
from llmbench.model.refusals import refuse_spec, refuse_step
from llmbench.model.residual import Residual
from llmbench.model.rwkv import RWKVBlock, mixes_channels
from llmbench.model.step import Step
from llmbench.spec.model import Layer, ModelSpec


class Block(BlockParts):
    """One layer of GPT-2, LLaMA and most other models. norm_placements.py has all other layers."""

    ffn: nn.Module

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        self.mixer_norm = layer_norm(spec, layer)
        self.ffn_norm = layer_norm(spec, layer)

    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read (T5's relative
        bias)."""
        mixed, shared = self.mix(self.mixer_norm(x, step.implementation), step, state, shared)
        x = x.plus(mixed)
        x = x.plus(self.feed(self.ffn_norm(x, step.implementation), step))
        return x, shared


def build_block(spec: ModelSpec, layer: Layer, *, index: int, where: str) -> BlockParts:
    """Build layer `index` of a stack. The placement of its norms decides the class.

    Raises UnsupportedError if the PyTorch model does not implement the layer.
    """
    kind: type[BlockParts]
    if is_gemma4(spec, layer):
        kind = Gemma4Block
    elif mixes_channels(layer):
        kind = RWKVBlock
    else:
        kind = Block if is_plain(layer) else block_class(spec, layer, where=where)
    return kind(spec, layer, index=index, where=where)


class Decoder(Embeddings):
    """A decoder-only or encoder-only language model. Use `llmbench.model.build` to create one."""

    has_encoder: ClassVar[bool] = False
    dropout: float = 0.0
    """The share of elements that dropout sets to 0 in training. `eval()` switches dropout off."""

    fixed_bias: Tensor | None

    def __init__(self, spec: ModelSpec, *, impl: str | None = None) -> None:
        refuse_spec(spec, has_encoder=self.has_encoder)
        super().__init__(spec)
        self.implementation = implementation(preferred(spec)[0] if impl is None else impl)
        per_layer = spec.embedding.per_layer
        self.per_layer = None if per_layer is None else PerLayerEmbeddings(spec, per_layer)
        self.layers = nn.ModuleList(
            build_block(spec, spec.layers[name], index=index, where=f"layers.{name}")
            for index, name in enumerate(spec.order)
        )
        self.rotations = rotations_of(self.layers)
        self.rotary_table = rotary_table(self.rotations)
        width = spec.head.size or self.embedding_width
        self.final_norm = NormLayer(spec.hidden_size, spec.norm) if spec.final_norm else None
        self.head = HeadLayer(spec, width) if HeadLayer.needed(spec, width) else None
        self.lm_head = nn.Linear(width, spec.vocab_size, bias=spec.head.bias and spec.head.transform != "bert")
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.register_buffer("fixed_bias", torch.empty(spec.vocab_size) if spec.head.fixed_bias else None)

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        token_types: Tensor | None = None,
        last_only: bool = False,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Return the logits [B, S, V] for tokens [B, S].

        - `last_only`: return only the logits [B, 1, V] of the last real token in each row.
        - `targets` [B, S]: the token that follows each position. If they are given, return the mean cross-entropy
          instead of the logits. A target of -100 is ignored.
        - `lengths` [B]: the number of real tokens in each row. Padding follows the real tokens.
        - `cache`: contains the earlier tokens of the sequences. The pass adds the new tokens to it.

        Each row gets the logits that it would get alone, in a pass without padding and without a cache. Raises
        CannotRunError or SpecError if the model cannot compute these logits.
        """
        return self.run(tokens, cache, lengths, token_types, last_only=last_only, targets=targets)

    def run(
        self,
        tokens: Tensor,
        cache: Cache | None,
        lengths: Tensor | None,
        token_types: Tensor | None,
        *,
        last_only: bool,
        targets: Tensor | None,
        memory: Tensor | None = None,
        memory_valid: Tensor | None = None,
    ) -> Tensor:
        """Run a forward pass like `forward`, with the output `memory` [B, E, D] of an encoder as an additional
        input."""
        batch, length = tokens.shape
        refuse_step(self.spec, self.rotations, batch, length, cache=cache, lengths=lengths)
        step = self._step(tokens, cache, lengths)._replace(
            memory=memory, memory_valid=memory_valid, dropout=self.dropout_now
        )
        embedded = step.dropped(self.embed(tokens, step.positions, token_types, self.implementation))
        if self.per_layer is not None:
            step = step._replace(per_layer=self.per_layer(tokens, embedded, self.implementation))
        x, shared = Residual(embedded), None
        for index, block in enumerate(self.layers):
            x, shared = block(x, step, None if cache is None else cache.layers[index], shared)
        if cache is not None:
            cache.advance(length, lengths)
        if last_only:
            x = Residual(_last_tokens(x.whole(), lengths))
        out = self.read(x)
        return self.logits(out) if targets is None else self.loss(out, targets)

    @property
    def dropout_now(self) -> float:
        """The share of elements that dropout sets to 0 in the current mode of the model."""
        return self.dropout if self.training else 0.0

    def _step(self, tokens: Tensor, cache: Cache | None, lengths: Tensor | None) -> Step:
        """Return the inputs that all layers share for tokens [B, S].

        Also reserves room for these tokens in the cache.
        """
        batch, length = tokens.shape
        places = torch.arange(length, device=tokens.device).expand(batch, -1)
        valid = None if lengths is None else places < lengths[:, None]
        if cache is None:
            return Step(places, valid, True, self._rotary_tables(places, length), self.implementation)
        plain, positions = cache.longest == 0, places + cache.lengths[:, None]
        tables = self._rotary_tables(positions, cache.reserve(length, lengths))
        after = cache.lengths + (length if lengths is None else lengths)
        return Step(positions, valid, plain, tables, self.implementation, after)

    def _rotary_tables(self, positions: Tensor, seq_len: int) -> Tables:
        """Return the tables of all rotations at positions [B, S]. `seq_len`: the length of the longest sequence."""
        if self.rotary_table is not None:
            return self.rotary_table.tables(self.rotations, positions)
        return tables_of(self.rotations, positions, seq_len)

    def read(self, x: Residual) -> Tensor:
        """Compute the input [B, S, W] of the vocabulary projection from the residual stream [B, S, D]."""
        normed = x.whole() if self.final_norm is None else self.final_norm(x, self.implementation)
        return normed if self.head is None else self.head(normed, self.implementation)

    def logits(self, x: Tensor) -> Tensor:
        """Project x [B, S, W] to logits [B, S, V], and apply the bias, the scale and the soft cap of the head."""
        head = self.spec.head
        out: Tensor = self.lm_head(x)
        if self.head is not None and self.head.bias is not None:
            out = out + self.head.bias
        if self.fixed_bias is not None:
            out = out + self.fixed_bias
        if head.scale != 1.0:
            out = out * head.scale
        return out if head.soft_cap is None else head.soft_cap * torch.tanh(out / head.soft_cap)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy for x [B, S, W] and targets [B, S]. A target of -100 is ignored."""
        if self.implementation.loss is None:
            logits = self.logits(x).flatten(0, 1)
            wide = torch.promote_types(logits.dtype, torch.float32)
            return F.cross_entropy(logits.to(wide), targets.flatten())
        head = self.spec.head
        biases = [self.lm_head.bias, None if self.head is None else self.head.bias, self.fixed_bias]
        given = [bias for bias in biases if bias is not None]
        bias = sum(given[1:], given[0]) if given else None
        return self.implementation.loss(
            x.flatten(0, 1), self.lm_head.weight, bias, targets.flatten(), head.scale, head.soft_cap
        )


def _last_tokens(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the vector of the last real token in each row: [B, S, D] to [B, 1, D]."""
    if lengths is None:
        return x[:, -1:]
    return x.take_along_dim((lengths - 1).clamp(min=0)[:, None, None], dim=1)
