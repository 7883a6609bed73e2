"""Build a spec from the metadata of a GGUF file, for the architectures whose metadata decides every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.gguf_file import read_gguf
from llmbench.spec.weights.safetensors import short
from llmbench.spec.weights.stored import Weights

__all__ = ["load_gguf"]

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "phi3": "phi3"}
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}


def load_gguf(path: Path) -> ModelSpec:
    """Return the spec of the model in a GGUF file. The header of the file gives the bytes of its weights.

    Raises SpecError if the file or a size in it is faulty, and UnsupportedError for other architectures.
    """
    metadata, tensors = read_gguf(path)
    architecture = metadata.get("general.architecture")
    family = _MODEL_TYPES.get(architecture) if isinstance(architecture, str) else None
    if family == "llama" and metadata.get("llama.expert_count"):
        family = "mixtral"
    if family is None:
        raise UnsupportedError(
            f"{path}: llmbench builds no spec of the GGUF architecture {short(str(architecture))}",
            hint=f"name the model, for example `llmbench params MODEL --weights {path}`",
        )
    values: dict[str, Any] = {"model_type": family}
    for key, name in _SIZES.items():
        value = metadata.get(f"{architecture}.{name}")
        if type(value) is not int:
            raise SpecError(
                f"{path}: the metadata has no number {architecture}.{name}",
                hint=f"name the model, for example `llmbench params MODEL --weights {path}`",
            )
        values[key] = value
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise SpecError(f"{path}: has no matrix token_embd.weight, which says the size of the vocabulary")
    values["vocab_size"] = embedding.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in tensors
    width = metadata.get(f"{architecture}.attention.key_length")
    if width is not None and family != "phi3":
        values["head_dim"] = width
    if family == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if family == "mixtral":
        values["num_local_experts"] = metadata["llama.expert_count"]
        values["num_experts_per_tok"] = metadata.get("llama.expert_used_count")
    window = metadata.get(f"{architecture}.attention.sliding_window")
    if window is not None and family in ("gemma2", "phi3"):
        values["sliding_window"] = window
    spec = from_config(values, name=path.stem, source=str(path))
    return msgspec.structs.replace(spec, weights=Weights(dtype="fp16", tensors_in=str(path)))
