"""A model spread over processes: FSDP2 (weights, gradients and states split over data-parallel ranks) or tensor
parallel (heads, feed-forward widths and the vocabulary split, Megatron's way: arXiv 1909.08053, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from llmbench.errors import UnsupportedError
from llmbench.model.attention import AttentionLayer
from llmbench.model.decoder import Block, Decoder
from llmbench.model.ffn import DenseLayer, GatedLayer
from llmbench.spec.mixer import Attention
from llmbench.spec.position import Alibi, RelativeBias

__all__ = ["Sharding", "shard"]

Sharding = Literal["fsdp", "tp"]


def shard(model: Decoder, sharding: Sharding, mesh: DeviceMesh) -> None:
    """Spread the model over the mesh, in place. Raises UnsupportedError for what tensor parallelism is not written
    for."""
    if sharding == "fsdp":
        for block in model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return
    for block in model.layers:
        assert isinstance(block, Block)
        _split_layer(model.spec.name, block, mesh)
    ends: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),  # the loss is taken of shards
    }
    parallelize_module(model, mesh, ends)
    if model.spec.tie_word_embeddings:  # both are split by rows of the vocabulary
        model.lm_head.weight = model.embedding.weight


def _split_layer(name: str, block: Block, mesh: DeviceMesh) -> None:
    """Queries, keys and values by heads, the feed-forward by its width. What each sublayer reads all ranks have; its
    last product is summed over them, and so is, once, the gradient of what it reads."""
    plan: dict[str, Any] = {}
    for mixer in block.mixers:
        attention = block.get_submodule(mixer)
        _split_heads(name, attention, mesh.size())
        plan |= {f"{mixer}.{part}": ColwiseParallel() for part in ("q_proj", "k_proj", "v_proj")}
        plan |= {mixer: _whole(inputs=4), f"{mixer}.o_proj": RowwiseParallel()}
    if block.ffn is not None:
        if not isinstance(block.ffn, (DenseLayer, GatedLayer)):
            raise UnsupportedError(f"{name}: tensor parallelism is written for dense feed-forwards")
        if isinstance(block.ffn, GatedLayer):
            plan["ffn.gate_proj"] = ColwiseParallel()
        plan |= {"ffn": _whole(inputs=2), "ffn.up_proj": ColwiseParallel(), "ffn.down_proj": RowwiseParallel()}
    parallelize_module(block, mesh, plan)


def _whole(inputs: int) -> PrepareModuleInput:
    """The first of so many inputs is the same everywhere."""
    layouts = Replicate(), *[None] * (inputs - 1)
    return PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts, use_local_output=False)


def _split_heads(name: str, attention: nn.Module, ranks: int) -> None:
    """Let the module count the heads that it has here."""
    if not isinstance(attention, AttentionLayer) or not _plain(attention):
        raise UnsupportedError(f"{name}: tensor parallelism is written for attention with heads of their own")
    mixer = attention.mixer
    if mixer.num_key_value_heads % ranks:
        raise UnsupportedError(f"{name}: {mixer.num_key_value_heads} key-value heads do not split over {ranks} ranks")
    attention.mixer = msgspec.structs.replace(
        mixer,
        num_attention_heads=mixer.num_attention_heads // ranks,
        num_key_value_heads=mixer.num_key_value_heads // ranks,
    )


def _plain(attention: AttentionLayer) -> bool:
    """Whether nothing in it is by head but the projections, and nothing over all heads."""
    mixer: Attention = attention.mixer
    by_head = mixer.sinks or mixer.output_gate or mixer.qk_norm or mixer.value_from_key
    return not by_head and not isinstance(attention.position_kind, (Alibi, RelativeBias))
