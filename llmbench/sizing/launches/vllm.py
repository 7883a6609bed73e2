"""The profile `vllm`: how many kernels vLLM launches for each op, as its documentation and its layers say.

No run of vLLM is compared with these figures.
"""

from __future__ import annotations

from typing import assert_never

from llmbench.sizing.launches.eager import added
from llmbench.sizing.launches.place import DENSE, NO_WORK, NORMS, PRODUCTS, SUMS, Place, Profile, Rule, named
from llmbench.spec.mixer import Attention, LatentAttention, Mamba, branches
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)


def _up(place: Place) -> int:
    """One product computes gate and up."""
    return 0 if place.gated else 1


def _latents(place: Place) -> int | None:
    """If the queries have a latent too, one product computes both latents."""
    mixer = place.attention
    return int(mixer.q_lora_rank is None) if isinstance(mixer, LatentAttention) else None


def _core(place: Place) -> int | None:
    """One kernel writes the new keys and values to the cache, and one computes attention."""
    mixer = place.attention
    causal = isinstance(mixer, LatentAttention) or (isinstance(mixer, Attention) and mixer.causal)
    return 2 if causal and _inside_attention(place) else None


def _inside_attention(place: Place) -> bool:
    """Return whether the kernel of attention computes what the positions add to the scores."""
    positions: Positions = place.positions
    match positions:
        case Alibi() | Rope() | LearnedPositions() | SinusoidalPositions() | NoPositions():
            return True
        case RelativeBias():
            return False
        case _:
            assert_never(positions)


def _scan(place: Place) -> int | None:
    """In a prefill, Mamba-2's scan is a chain of kernels, which changes with the version."""
    one = place.workload.phase == "decode" or any(isinstance(mixer, Mamba) for mixer in branches(place.layer.mixer))
    return 1 if one else None


_UNKNOWN = [*named("cross_attention", "q_proj k_proj v_proj o_proj"), "attention.g_proj"]

_RULES: dict[str, Rule] = {
    **dict.fromkeys((name for name in PRODUCTS if name not in _UNKNOWN), 1),
    **dict.fromkeys(NORMS, 1),
    **dict.fromkeys(SUMS, 0),  # the next norm adds
    **dict.fromkeys(NO_WORK, 0),
    **dict.fromkeys(["embedding", "position_embedding", "lm_head"], 1),
    # q_proj stands for one product that computes queries, keys and values.
    **dict.fromkeys(["attention.k_proj", "attention.v_proj"], 0),
    "attention.kv_a_proj": _latents,
    # In the absorbed form, one product changes the queries, and one changes the outputs.
    "attention.kv_b_proj": lambda place: 2 if place.workload.absorbed_mla else 1,
    **dict.fromkeys(["attention.rope", "attention.clip", "attention.gate"], 1),
    "attention.core": _core,
    **dict.fromkeys(named(DENSE, "up_proj"), _up),
    **dict.fromkeys(named(DENSE, "act"), 1),
    **dict.fromkeys(["ffn.dispatch", "ffn.shared_scale"], 1),
    # The selection of the experts is a kernel of its own.
    "ffn.router": lambda place: 2 if place.moe is not None else None,
    **dict.fromkeys(named("ffn.experts", "gate_proj act down_proj"), 1),
    "ffn.experts.up_proj": _up,
    "ffn.combine": lambda place: 1 + min(1, added(place.moe)) if place.moe is not None else None,
    **dict.fromkeys(named("mamba", "in_proj conv x_proj dt_norm b_norm c_norm dt_proj norm out_proj"), 1),
    **dict.fromkeys(named("mamba", "A_log D dt_bias"), 0),
    "mamba.scan": _scan,
}

PROFILE = Profile(
    "about",
    "docs/design/fusions.md, vllm/model_executor/layers (QKVParallelLinear and MergedColumnParallelLinear of "
    "linear.py, fused_add_rms_norm of layernorm.py, SiluAndMul of activation.py, rotary_embedding, fused_moe, mamba), "
    "vllm/v1/attention/backends/flash_attn.py (reshape_and_cache_flash, flash_attn_varlen_func)",
    "bf16 on one NVIDIA GPU, optimization level 2, attention that does not split the keys. Norms on queries and keys "
    "are kernels of their own (the fusion with RoPE is off by default). A gate and its product are one kernel. The "
    "sampler is not counted. With a CUDA graph, the host launches all these kernels at once",
    _RULES,
)
