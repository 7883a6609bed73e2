"""The real model: one decoder for every ModelSpec, its modules named as the ops of the sizing table.

B batch, S length, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.model.attention import Step
from llmbench.model.cross import CrossAttentionLayer
from llmbench.model.ffn import feed_forward
from llmbench.model.head import HeadLayer
from llmbench.model.implementations import implementation
from llmbench.model.mixers import build_mixer
from llmbench.model.norms import NormLayer, Residual, times
from llmbench.model.positions import refuse_turned_anew, rotations_of, sinusoids, tables_of
from llmbench.model.state import Cache
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import branches, scales
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import LearnedPositions, SinusoidalPositions


class Block(nn.Module):
    """One layer: mixers and feed-forward with norms where the placement puts them."""

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__()
        self.placement = layer.placement
        self.layer = layer
        hidden = spec.hidden_size
        norm = spec.norm if layer.norm is None else layer.norm
        self.scales = scales(layer.mixer)
        self.mixers: list[str] = []
        for mixer in branches(layer.mixer):
            self.add_module(mixer.module_name, build_mixer(spec, mixer, index=index, where=f"{where}.mixer"))
            self.mixers.append(mixer.module_name)
        crossing = layer.cross_attention
        self.cross_attention: CrossAttentionLayer | None = None
        if crossing is not None:
            if self.placement not in ("pre", "post"):
                raise UnsupportedError(f"{spec.name}: {where}.cross_attention with this placement is not built yet")
            self.cross_attention = CrossAttentionLayer(spec, crossing, where=f"{where}.cross_attention")
        self.ffn = None if layer.ffn is None else feed_forward(hidden, layer.ffn)
        self.norm = NormLayer(hidden, norm) if self.placement == "parallel" else None
        self.cross_norm = None if crossing is None else NormLayer(hidden, norm)
        self.mixer_norm = self.ffn_norm = self.post_mixer_norm = self.post_ffn_norm = None
        if self.placement in ("pre", "sandwich", "parallel_two", "post"):
            self.mixer_norm = NormLayer(hidden, norm) if self.mixers else None
            self.ffn_norm = NormLayer(hidden, norm) if self.ffn is not None else None
        if self.placement in ("output", "sandwich"):
            self.post_mixer_norm = NormLayer(hidden, norm) if self.mixers else None
            self.post_ffn_norm = NormLayer(hidden, norm) if self.ffn is not None else None

    def forward(self, stream: Residual, step: Step, state: dict[str, Any] | None, shared: Any) -> tuple[Residual, Any]:
        """The stream of [B, S, D] with this layer's outputs in it, and what later layers of the stack share."""
        both: Tensor | None = None
        if self.norm is not None:
            both, stream = self.norm.read(stream, step.implementation)
        start = stream
        if self.mixers:
            inner, stream = self._before(stream, both, self.mixer_norm, step)
            start = stream
            outs = []
            for name, (reads, gives) in zip(self.mixers, self.scales, strict=True):
                own = None if state is None else state[name]
                out, shared = self.get_submodule(name)(times(inner, reads), step, own, shared)
                outs.append(times(out, gives))
            stream = self._after(stream, inner, sum(outs[1:], outs[0]), self.mixer_norm, self.post_mixer_norm, step)
        if self.cross_attention is not None:
            inner, stream = self._before(stream, None, self.cross_norm, step)
            out = self.cross_attention(inner, step, None if state is None else state["cross_attention"])
            stream = self._after(stream, inner, out, self.cross_norm, None, step)
        if self.ffn is not None:
            if self.placement == "parallel_two":
                inner, _ = self._before(start, both, self.ffn_norm, step)
            else:
                inner, stream = self._before(stream, both, self.ffn_norm, step)
            out = self.ffn(inner, step.implementation)
            stream = self._after(stream, inner, out, self.ffn_norm, self.post_ffn_norm, step)
        return stream, shared

    def _before(
        self, stream: Residual, both: Tensor | None, norm: NormLayer | None, step: Step
    ) -> tuple[Tensor, Residual]:
        """What a sublayer reads, and the stream once it is read."""
        if both is not None:
            return both, stream
        if norm is None or self.placement == "post":
            x = stream.whole()
            return x, Residual(x)
        return norm.read(stream, step.implementation)

    def _after(
        self, stream: Residual, inner: Tensor, out: Tensor, norm: NormLayer | None, post: NormLayer | None, step: Step
    ) -> Residual:
        """The stream with the output of a sublayer, which read `inner`, in it."""
        out = out if post is None else post(out, step.implementation)
        x = inner if self.layer.residual_from_norm else stream.whole()
        stream = Residual(times(x, self.layer.skip_scale), times(out, self.layer.residual_scale))
        if self.placement == "post" and norm is not None:
            return Residual(norm.read(stream, step.implementation)[0])
        return stream


class Decoder(nn.Module):
    """A decoder-only (or encoder-only) language model. Build it with `llmbench.model.build`."""

    has_encoder: ClassVar[bool] = False

    def __init__(self, spec: ModelSpec, *, impl: str = "sdpa") -> None:
        super().__init__()
        refuse(spec, has_encoder=self.has_encoder)
        self.spec = spec
        self.implementation = implementation(impl)
        hidden = spec.hidden_size
        width = spec.embedding.size or hidden
        self.embedding = nn.Embedding(spec.vocab_size, width)
        self.position_embedding: nn.Embedding | None = None
        if isinstance(spec.positions, LearnedPositions):
            after = hidden if spec.embedding.positions_after else width
            self.position_embedding = nn.Embedding(spec.positions.num_positions, after)
        types = spec.embedding.token_types
        self.token_type_embedding = nn.Embedding(types, width) if types else None
        self.embedding_norm = NormLayer(width, spec.norm) if spec.embedding.norm else None
        self.embedding_projection = None
        if spec.embedding.size is not None:
            self.embedding_projection = nn.Linear(width, hidden, bias=spec.embedding.projection_bias)
        self.layers = nn.ModuleList(
            Block(spec, spec.layers[name], index=index, where=f"layers.{name}") for index, name in enumerate(spec.order)
        )
        self.rotations = rotations_of(self.layers)
        ffns = [layer.ffn for layer in spec.layers.values()]
        self.shares_room = any(isinstance(ffn, MoE) and ffn.capacity_factor is not None for ffn in ffns)
        self.final_norm = NormLayer(hidden, spec.norm) if spec.final_norm else None
        self.head = HeadLayer(spec, width) if HeadLayer.needed(spec, width) else None
        self.lm_head = nn.Linear(width, spec.vocab_size, bias=spec.head.bias and spec.head.transform != "bert")
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight

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
        """Logits [B, S, V] of tokens [B, S], or with `last_only` [B, 1, V] of each row's last real token; or with
        `targets` [B, S], the tokens that should come next, their mean cross-entropy.

        lengths [B]: how many of each row's tokens are real, the rest being padding at its end. cache: goes on where it
        stands, and takes the new tokens in. A target of -100 counts for nothing.
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
        """`forward`, with an encoder's output `memory` [B, E, D] where there is one."""
        batch, length = tokens.shape
        steps = torch.arange(length, device=tokens.device).expand(batch, -1)
        valid = None if lengths is None else steps < lengths[:, None]
        positions = steps if cache is None else steps + cache.lengths[:, None]
        plain = cache is None or cache.longest == 0
        self._refuse_step(batch, length, cache, lengths)
        seen = length if cache is None else cache.reserve(length, lengths)
        tables = tables_of(self.rotations, positions, seen)
        after = None if cache is None else cache.lengths + (length if lengths is None else lengths)
        step = Step(positions, valid, plain, tables, self.implementation, after, memory, memory_valid)
        stream, shared = Residual(self.embed(tokens, positions, token_types)), None
        for index, block in enumerate(self.layers):
            stream, shared = block(stream, step, None if cache is None else cache.layers[index], shared)
        if cache is not None:
            cache.advance(length, lengths)
        if last_only:
            x = stream.whole()
            x = x[:, -1:] if lengths is None else x.take_along_dim((lengths - 1).clamp(min=0)[:, None, None], dim=1)
            stream = Residual(x)
        x = self.read(stream)
        return self.logits(x) if targets is None else self.loss(x, targets)

    def _refuse_step(self, batch: int, length: int, cache: Cache | None, lengths: Tensor | None) -> None:
        """Raise CannotRunError for what would be computed otherwise than in one pass of each row alone."""
        end = length if cache is None else length + cache.longest
        refuse_beyond_positions(self.spec, end)
        if any(rotation.regime(end) != rotation.regime(1) for rotation in self.rotations):
            held = [0] * batch if cache is None else cache.held
            new = [length] * batch if lengths is None else lengths.tolist()
            refuse_turned_anew(self.rotations, held, [had + more for had, more in zip(held, new, strict=True)])
        if lengths is not None and self.shares_room and bool((lengths < length).any()):
            raise CannotRunError(
                f"{self.spec.name}: with a capacity factor padding would take the places of real tokens",
                hint="give rows of one length",
            )

    def embed(self, tokens: Tensor, positions: Tensor, token_types: Tensor | None) -> Tensor:
        """[B, S] to [B, S, D]."""
        spec = self.spec
        x = self.looked_up(tokens)
        if self.token_type_embedding is not None:
            kinds = torch.zeros_like(tokens) if token_types is None else token_types
            x = x + self.token_type_embedding(kinds)
        table = self.position_embedding
        added: Tensor | None = None
        if table is not None:
            assert isinstance(spec.positions, LearnedPositions)
            if spec.positions.uncounted is not None:
                counted = tokens != spec.positions.uncounted
                positions = torch.where(counted, positions[:, :1] + counted.cumsum(-1) - 1, -1)
            added = table(positions + spec.positions.offset)
        elif isinstance(spec.positions, SinusoidalPositions):
            added = sinusoids(spec.positions, positions, x.shape[-1], x.dtype)
        after = spec.embedding.positions_after
        if added is not None and not after:
            x = x + added
        if self.embedding_norm is not None:
            x = self.embedding_norm(x, self.implementation)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        return x + added if added is not None and after else x

    def looked_up(self, tokens: Tensor) -> Tensor:
        """Rows of the embedding [B, S, W], as the model scales them."""
        x: Tensor = self.embedding(tokens)
        scale = self.spec.embedding.scale
        return x if scale == 1.0 else x * torch.tensor(scale, dtype=x.dtype)

    def read(self, stream: Residual) -> Tensor:
        """The stream of [B, S, D] as the vocabulary is multiplied with it, [B, S, W]."""
        x = stream.whole() if self.final_norm is None else self.final_norm.read(stream, self.implementation)[0]
        return x if self.head is None else self.head(x, self.implementation)

    def logits(self, x: Tensor) -> Tensor:
        """[B, S, W] to [B, S, V]."""
        head = self.spec.head
        out: Tensor = self.lm_head(x)
        if self.head is not None and self.head.bias is not None:
            out = out + self.head.bias
        if head.scale != 1.0:
            out = out * head.scale
        return out if head.soft_cap is None else head.soft_cap * torch.tanh(out / head.soft_cap)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of [B, S, W] for targets [B, S]; one of -100 counts for nothing."""
        if self.implementation.loss is None:
            logits = self.logits(x).flatten(0, 1)
            wide = torch.promote_types(logits.dtype, torch.float32)
            return F.cross_entropy(logits.to(wide), targets.flatten())
        head = self.spec.head
        bias = self.lm_head.bias if self.head is None or self.head.bias is None else self.head.bias
        return self.implementation.loss(
            x.flatten(0, 1), self.lm_head.weight, bias, targets.flatten(), head.scale, head.soft_cap
        )


def refuse(spec: ModelSpec, *, has_encoder: bool) -> None:
    """Raise UnsupportedError for what a spec has and the real model does not."""
    if spec.encoder is not None and not has_encoder:
        raise UnsupportedError(f"{spec.name}: has an encoder", hint="llmbench.model.build makes a Seq2Seq of it")
    if spec.undescribed:
        raise _only_sized(f"{spec.name}: {spec.undescribed[0]}")
    if spec.extra:
        raise _only_sized(f"{spec.name}: extra ({', '.join(weight.name for weight in spec.extra)})")
    if spec.hyper_connections is not None:
        raise _only_sized(f"{spec.name}: hyper_connections")
    refuse_layers(spec.name, spec.layers, "")


def refuse_layers(model: str, layers: Mapping[str, Layer], where: str) -> None:
    """Raise UnsupportedError for what kinds of layers have and the real ones do not."""
    for name, layer in layers.items():
        at = f"{model}: {where}layers.{name}"
        if layer.extra:
            raise _only_sized(f"{at}.extra ({', '.join(weight.name for weight in layer.extra)})")
        if layer.shared_weights is not None:
            raise _only_sized(f"{at}.shared_weights")


def _only_sized(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what}: sized, not built yet", hint="`llmbench params`, `flops`, `kvcache` and `memory` need no built model"
    )
