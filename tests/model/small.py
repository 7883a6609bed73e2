"""Tiny specs of every kind of attention that has a cache, and models of them with large random weights."""

from __future__ import annotations

from typing import Any

import torch

from llmbench.model import build
from llmbench.model.decoder import Decoder
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import Attention, Indexer, LatentAttention, Mamba2, Mixer, Parallel, QKNorm
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    RopeScaling,
    SinusoidalPositions,
)

VOCABULARY = 64
WINDOW = 5


def gqa(**fields: Any) -> Attention:
    """Attention with four query heads and two KV heads of 8."""
    defaults: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return Attention(**{**defaults, **fields})


def mla(**fields: Any) -> LatentAttention:
    """MLA with four heads, a latent of 16 and a rotary key of 4."""
    defaults: dict[str, Any] = {
        "num_attention_heads": 4,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "q_lora_rank": 12,
    }
    return LatentAttention(**{**defaults, **fields})


def small(*mixers: Mixer, positions: Positions | None = None, layers: int = 2, name: str = "small") -> ModelSpec:
    """A spec whose layers take the mixers in turn."""
    kinds = {f"kind{index}": Layer(mixer=mixer, ffn=Gated(intermediate_size=24)) for index, mixer in enumerate(mixers)}
    return ModelSpec(
        name=name,
        source="a test",
        layers=kinds,
        pattern=" ".join(f"kind{index % len(kinds)}" for index in range(max(layers, len(kinds)))),
        vocab_size=VOCABULARY,
        hidden_size=32,
        tie_word_embeddings=False,
        positions=positions or Rope(interleaved=any(isinstance(m, LatentAttention) for m in mixers)),
        max_position_embeddings=64,
    ).check()


YARN = Rope(
    interleaved=True,
    scaling=RopeScaling(
        kind="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.9, beta_fast=32.0
    ),
)
MAMBA = Mamba2(num_heads=4, head_dim=8, state_size=8, n_groups=2, conv_kernel=4, chunk_size=4)
# Many index heads, because scores that tie (all heads at zero) have no order.
INDEXER = Indexer(num_heads=16, head_dim=8, top_k=6)

SPECS: dict[str, ModelSpec] = {
    "mha": small(gqa(num_key_value_heads=4)),
    "gqa": small(gqa(qkv_bias=True, output_bias=True)),
    "mqa": small(gqa(num_key_value_heads=1)),
    "wide values": small(gqa(v_head_dim=12)),
    "window": small(gqa(sliding_window=WINDOW)),
    "window of one": small(gqa(sliding_window=1)),
    "window of all": small(gqa(sliding_window=100)),
    "local and global": small(gqa(sliding_window=WINDOW), gqa(positions=NoPositions())),
    "chunks": small(gqa(attention_chunk_size=6), gqa()),
    "no positions": small(gqa(), positions=NoPositions()),
    "alibi": small(gqa(), positions=Alibi()),
    "learned": small(gqa(), positions=LearnedPositions(num_positions=40, offset=2)),
    "sinusoidal": small(gqa(), positions=SinusoidalPositions()),
    "relative bias": small(gqa(), positions=RelativeBias(num_buckets=8, max_distance=16)),
    "sinks": small(gqa(sinks=True, sliding_window=WINDOW)),
    "soft cap": small(gqa(logit_soft_cap=2.0)),
    "qk norm and gate": small(gqa(qk_norm=QKNorm(), output_gate="elementwise")),
    "values from keys": small(gqa(value_from_key=True, value_norm=True)),
    "mla": small(mla()),
    "mla full rank, yarn": small(mla(q_lora_rank=None), positions=YARN),
    "mla window": small(mla(sliding_window=WINDOW)),
    "mla without rotation": small(mla(qk_rope_head_dim=0, latent_norms=False)),
    "mla indexed": small(mla(indexer=INDEXER)),
    "mla shared indexer": small(
        mla(indexer=INDEXER), mla(indexer=Indexer(num_heads=16, head_dim=8, top_k=6, shared=True))
    ),
    "hybrid": small(MAMBA, gqa(sliding_window=WINDOW)),
    "parallel": small(Parallel(branches=(MAMBA, gqa()))),
}


def model_of(spec: ModelSpec, *, impl: str = "standard", seed: int = 0) -> Decoder:
    """A model of the spec, with weights so large that attention is far from uniform."""
    model = build(spec, impl=impl, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.normal_(0.0, 0.3, generator=generator)
            elif name.endswith("sinks"):
                parameter.normal_(0.0, 1.0, generator=generator)
    return model.eval()


def prompt(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random tokens [B, S]."""
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
