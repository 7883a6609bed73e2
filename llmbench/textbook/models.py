"""The models that the claims speak of, and figures of them that several claims use."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.sizing.kvcache import as_heads, kv_cache
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import inference_memory
from llmbench.sizing.op import Op
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import Rope

__all__ = [
    "attention_core",
    "cache_bytes",
    "gpt2",
    "less",
    "memory_bytes",
    "parameters",
    "shared_heads",
    "style",
]


def gpt2(num_positions: int = 1024, *, tied: bool = True) -> ModelSpec:
    """Return GPT-2 (12 layers of width 768, 12 heads) with `num_positions` learned positions."""
    return override(load_bundled("gpt2"), {"positions.num_positions": num_positions, "tie_word_embeddings": tied})


def shared_heads(spec: ModelSpec, kv_heads: int) -> ModelSpec:
    """Return the model with another number of key-value heads."""
    changed = as_heads(spec, "gqa", groups=kv_heads)
    assert changed is not None
    return changed


def style(name: Literal["GPT-2", "LLaMA"], *, kv_heads: int = 6, layers: int = 6) -> ModelSpec:
    """Return a model with the size of nanoGPT's model of Shakespeare's plays: width 384, 6 heads, 65 characters.

    "GPT-2": that model, with learned positions, LayerNorm and GELU. "LLaMA": the same model with RoPE, RMSNorm, SwiGLU
    of equal parameters, and `kv_heads` key-value heads.
    """
    base = override(load_bundled("nanogpt-shakespeare"), {"num_hidden_layers": layers})
    if name == "LLaMA":
        layer = msgspec.structs.replace(base.layers["block"], ffn=Gated(intermediate_size=1024))
        base = msgspec.structs.replace(base, norm=Norm(), positions=Rope(), layers={"block": layer})
        base = shared_heads(base, kv_heads)
    return msgspec.structs.replace(base, name=f"{name} style", published_parameters=None, notes=()).check()


def attention_core(spec: ModelSpec, workload: Workload) -> tuple[Op, AttentionKind]:
    """Return the op softmax(Q Kᵀ) V of the model's first kind of layer, and the attention of this layer."""
    op = next(op for op in lower(spec, workload) if op.role == "core")
    mixer = spec.layers[op.layer].mixer
    assert isinstance(mixer, AttentionKind)
    return op, mixer


def parameters(spec: ModelSpec) -> int:
    """Return the number of parameters of a model."""
    return count_parameters(spec).total


def cache_bytes(spec: ModelSpec, seq_len: int, *, batch: int = 1) -> int:
    """Return the bytes of the KV cache in bf16."""
    return kv_cache(spec, seq_len, batch=batch).bytes_total


def memory_bytes(spec: ModelSpec, seq_len: int, *, batch: int = 1) -> int:
    """Return the bytes of weights, cache and the largest prefill step of a model that is served in bf16."""
    return inference_memory(spec, seq_len, batch=batch, weights="bf16").peak_bytes


def less(new: float, old: float) -> float:
    """Return the change from `old` to `new` as a share of `old`. It is negative if `new` is smaller."""
    return new / old - 1
