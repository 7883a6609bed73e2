"""Cross-attention: the queries of a decoder attend to the output of an encoder.

Dimensions: B batch, S query length, E encoder length, D hidden size, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.model.implementations.interface import Given, Mask, Scores
from llmbench.model.step import Step
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec

_SELF_ATTENTION_ONLY = (
    "sliding_window",
    "attention_chunk_size",
    "qk_norm",
    "value_norm",
    "sinks",
    "output_gate",
    "value_scale",
    "value_from_key",
    "shares_kv",
    "output_norm",
    "differential",
    "attention_experts",
    "input_size",
    "disentangled",
    "clip_qkv",
    "temperature",
    "positions",
)


class CrossState:
    """The keys and values [B, K, E, H] that one layer computed from the output of the encoder. They are computed once.

    - `valid` [B, E]: true for real encoder tokens. None: no encoder token is padding.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.valid: Tensor | None = None

    def forget(self, row: int) -> None:
        """Raise UnsupportedError. The encoder reads all rows in one pass, so one row cannot be replaced later."""
        raise UnsupportedError("an encoder-decoder cannot replace one sequence of a batch", hint="start a new batch")

    @property
    def nbytes(self) -> int:
        """The bytes of keys and values. 0 before the encoder has run."""
        return sum(tensor.nbytes for tensor in (self.keys, self.values) if tensor is not None)


class CrossAttentionLayer(nn.Module):
    """Cross-attention. Queries come from x [B, S, D], keys and values from the output of the encoder.

    The layer applies no position encoding, as in T5 and BART.
    """

    def __init__(self, spec: ModelSpec, mixer: Attention, *, where: str) -> None:
        super().__init__()
        for field in _SELF_ATTENTION_ONLY:
            if getattr(mixer, field):
                raise UnsupportedError(f"{spec.name}: {where}.{field} is not implemented in the PyTorch model yet")
        self.mixer = mixer
        hidden, kv_heads = spec.hidden_size, mixer.num_key_value_heads
        source = hidden
        if spec.encoder is not None and spec.encoder.hidden_size is not None:
            source = spec.encoder.hidden_size
        self.q_proj = nn.Linear(hidden, mixer.num_attention_heads * mixer.head_dim, bias=mixer.qkv_bias)
        self.k_proj = nn.Linear(source, kv_heads * mixer.head_dim, bias=mixer.qkv_bias and mixer.key_bias)
        self.v_proj = nn.Linear(source, kv_heads * mixer.value_dim, bias=mixer.qkv_bias)
        self.o_proj = nn.Linear(mixer.num_attention_heads * mixer.value_dim, hidden, bias=mixer.output_bias)
        self.scale = mixer.score_scale

    def forward(self, x: Tensor, step: Step, state: CrossState | None) -> Tensor:
        """Return the output [B, S, D] of cross-attention for x [B, S, D]."""
        q = self.q_proj(x).unflatten(-1, (self.mixer.num_attention_heads, -1)).transpose(1, 2)
        k, v, valid = self._keys_values(step, state)
        keys = torch.arange(k.shape[2], device=k.device).expand(k.shape[0], -1)
        if valid is not None:
            keys = keys.masked_fill(~valid, -1)
        mask = Mask(step.positions, keys, False, None, None, valid is None)
        scores = Scores(self.scale, self.mixer.logit_soft_cap, dropout=step.dropout)
        out = step.implementation.attend(q, Given(k, v, mask), scores)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _keys_values(self, step: Step, state: CrossState | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values [B, K, E, H], and a mask [B, E] that is true for real encoder tokens (or None).

        If `step.memory` has the encoder output, computes keys and values from the encoder output, and stores them in
        `state`. Otherwise, reads the stored keys and values from `state`.
        """
        if step.memory is not None:
            k, v = (
                projection(step.memory).unflatten(-1, (self.mixer.num_key_value_heads, -1)).transpose(1, 2)
                for projection in (self.k_proj, self.v_proj)
            )
            if state is not None:
                state.keys, state.values, state.valid = k, v, step.memory_valid
            return k, v, step.memory_valid
        if state is None or state.keys is None or state.values is None:
            raise CannotRunError("the decoder has no encoder output", hint="pass encoder_tokens")
        return state.keys, state.values, state.valid
