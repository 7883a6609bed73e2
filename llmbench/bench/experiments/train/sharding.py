"""Shard a model over processes with FSDP2, with tensor parallelism or with expert parallelism.

FSDP2 splits weights, gradients and optimizer states over the data-parallel ranks. Tensor parallelism splits the heads,
the width of the feed-forward and the vocabulary, as Megatron does (arXiv 1909.08053, section 3). Expert parallelism
splits the experts over the data-parallel ranks, and each rank has all other weights (arXiv 2006.16668, section 3.2).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from llmbench.errors import UnsupportedError
from llmbench.model.attention import AttentionLayer
from llmbench.model.decoder import Decoder
from llmbench.model.expert_parallel import split_experts
from llmbench.model.ffn import DenseLayer, GatedLayer
from llmbench.model.fully_sharded import split_weights
from llmbench.model.norm_placements import BlockParts
from llmbench.spec.mixer import Attention

__all__ = ["DATA_PARALLEL", "Sharding", "shard"]

Sharding = Literal["fsdp", "tp", "ep"]

DATA_PARALLEL: tuple[Sharding, ...] = ("fsdp", "ep")
"""The shardings in which each rank has its own part of the batch."""


def shard(model: Decoder, sharding: Sharding, mesh: DeviceMesh) -> None:
    """Shard the model over the mesh, in place.

    Raises UnsupportedError for a layer that the sharding does not support.
    """
    if sharding == "fsdp":
        split_weights(model, mesh)
        return
    if sharding == "ep":
        split_experts(model, mesh)
        return
    for block in model.layers:
        assert isinstance(block, BlockParts)
        _split_layer(model.spec.name, block, mesh)
    ends: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        # Each rank keeps its shard of the logits, because the loss is computed on shards.
        "lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, ends)
    # Sharding has untied the two weights. Tie them again: both are split along the vocabulary.
    if model.spec.tie_word_embeddings:
        model.lm_head.weight = model.embedding.weight


def _split_layer(name: str, block: BlockParts, mesh: DeviceMesh) -> None:
    """Split queries, keys and values by head, and the feed-forward by width.

    Every rank has the whole input of a sublayer. Each sublayer sums two tensors over the ranks: the result of its last
    matrix product, and the gradient of its input.
    """
    plan: dict[str, Any] = {}
    for mixer in block.mixers:
        attention = block.get_submodule(mixer)
        _split_heads(name, attention, mesh.size())
        plan |= {f"{mixer}.{part}": ColwiseParallel() for part in ("q_proj", "k_proj", "v_proj")}
        plan |= {mixer: _replicated(inputs=4), f"{mixer}.o_proj": RowwiseParallel()}
    if block.ffn is not None:
        if not isinstance(block.ffn, (DenseLayer, GatedLayer)):
            raise UnsupportedError(f"{name}: tensor parallelism supports dense feed-forwards only")
        if isinstance(block.ffn, GatedLayer):
            plan["ffn.gate_proj"] = ColwiseParallel()
        plan |= {"ffn": _replicated(inputs=2), "ffn.up_proj": ColwiseParallel(), "ffn.down_proj": RowwiseParallel()}
    parallelize_module(block, mesh, plan)


def _replicated(inputs: int) -> PrepareModuleInput:
    """Return the `PrepareModuleInput` of a module with `inputs` inputs. It says that every rank has the complete first
    input."""
    layouts = Replicate(), *[None] * (inputs - 1)
    return PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts, use_local_output=False)


def _split_heads(name: str, attention: nn.Module, ranks: int) -> None:
    """Divide the head counts of the module by the number of ranks."""
    if not isinstance(attention, AttentionLayer) or not _plain(attention):
        raise UnsupportedError(
            f"{name}: tensor parallelism supports only attention without latents, sinks, gates, q/k norms and biases"
        )
    mixer = attention.mixer
    if mixer.num_key_value_heads % ranks:
        raise UnsupportedError(
            f"{name}: {mixer.num_key_value_heads} key-value heads cannot be divided equally among {ranks} ranks"
        )
    attention.mixer = msgspec.structs.replace(
        mixer,
        num_attention_heads=mixer.num_attention_heads // ranks,
        num_key_value_heads=mixer.num_key_value_heads // ranks,
    )


def _plain(attention: AttentionLayer) -> bool:
    """Return whether tensor parallelism supports the attention.

    Tensor parallelism splits the projections by head, and nothing else. It therefore supports no attention with sinks,
    an output gate, q/k norms, values computed from keys, ALiBi or a relative bias.
    """
    mixer: Attention = attention.mixer
    per_head = mixer.sinks or mixer.output_gate or mixer.qk_norm or mixer.value_from_key
    return not per_head and attention.position_kind.acts_on != "scores"
