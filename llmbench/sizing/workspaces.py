"""The bytes of library workspaces, and of buffers that a training framework never frees.

They do not depend on the number of layers.
"""

from __future__ import annotations

from llmbench.sizing.memory import WORKSPACE_BYTES, cublas_workspace
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import branches
from llmbench.spec.model import ModelSpec

_MIB = 2**20


def training_workspaces(
    spec: ModelSpec, workload: Workload, layout: Layout, recipe: Recipe, compute_capability: float
) -> int:
    """Return the bytes of workspaces and permanent buffers on one GPU.

    With torch, they are WORKSPACE_BYTES. With Megatron, they are the sum of:

    - cuBLAS: one workspace for each of two threads, which run the forward and the backward pass. Deterministic runs
      set CUBLAS_WORKSPACE_CONFIG to :4096:8, which is 32 MiB.
    - Transformer Engine (pytorch/module/base.py): 32 MiB since Hopper, 4 MiB before. Grouped matrix products of experts
      have one such workspace for each of four streams.
    - Megatron's global memory buffer (core/utils.py): with sequence parallelism, the gathered input of the head. With
      Megatron's own layers, the scores of one layer of attention.
    """
    if not recipe.megatron:
        return WORKSPACE_BYTES
    local = recipe.framework == "megatron-local"
    engine = (4 if compute_capability < 9 else 32) * _MIB
    total = 2 * (32 * _MIB if recipe.deterministic else cublas_workspace(compute_capability))
    if not local:
        total += engine
    if spec.is_moe and not recipe.sequential_experts:
        total += 4 * engine
    tokens = -(-workload.batch * workload.query_len // layout.cp)
    if layout.sp:
        total += 2 * tokens * spec.hidden_size
    if local:
        total += 2 * tokens * workload.query_len * -(-_most_heads(spec) // layout.tp)
    return total


def _most_heads(spec: ModelSpec) -> int:
    """Return the largest number of attention heads of a layer."""
    mixers = (mixer for layer in spec.layers.values() for mixer in branches(layer.mixer))
    return max((getattr(mixer, "num_attention_heads", 0) for mixer in mixers), default=0)
