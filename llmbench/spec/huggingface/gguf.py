"""Build a spec from the metadata of a GGUF file, for the architectures whose metadata decides every size."""

from __future__ import annotations

import re
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

_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "gpt-oss": "gpt_oss",
}
"""The model type of each architecture. The layers of other architectures differ in ways that the metadata does not say:
Llama 4, for example, does not name its layers without chunked attention."""
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
_WIDTH = {"intermediate_size": "feed_forward_length"}
_EXPERTS = {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
_WINDOW = {"sliding_window": "attention.sliding_window"}
_FURTHER_SIZES = {
    "mixtral": _WIDTH | _EXPERTS,
    "qwen3_moe": {
        "num_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "moe_intermediate_size": "expert_feed_forward_length",
    },
    "gpt_oss": {"intermediate_size": "expert_feed_forward_length"} | _EXPERTS | _WINDOW,
    "gemma3_text": _WIDTH | _WINDOW,
}
"""Further sizes that the metadata of a model type must have. Model types that are not named need only _WIDTH."""


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
    for key, name in (_SIZES | _FURTHER_SIZES.get(family, _WIDTH)).items():
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
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    width = own.get("attention.key_length")
    if width is not None and family != "phi3":
        values["head_dim"] = width
    if family == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if family == "qwen3_moe":
        values["norm_topk_prob"] = True  # llama.cpp normalises the weights of the chosen experts of every such model
    if family == "gemma3_text":
        values |= _window_pattern(path, metadata)
    if own.get("attention.sliding_window") is not None and family in _WINDOWED:
        values["sliding_window"] = own["attention.sliding_window"]
    rotated = own.get("rope.dimension_count")
    if family == "phi3" and type(rotated) is int:
        values["partial_rotary_factor"] = rotated * values["num_attention_heads"] / max(1, values["hidden_size"])
    if "rope.freq_base" in own:
        values["rope_theta"] = own["rope.freq_base"]
    if own.get("rope.scaling.type") == "linear":
        values["rope_scaling"] = {"rope_type": "linear", "factor": own.get("rope.scaling.factor")}
    spec = from_config(values, name=path.stem, source=str(path))
    doubts = _doubts(path, family, spec, own)
    return msgspec.structs.replace(
        spec,
        weights=Weights(dtype="fp16", tensors_in=str(path)),
        approximate=(*spec.approximate, *doubts[:_MOST_DOUBTS]),
    )


_WINDOWED = ("gemma2", "gemma3_text", "gpt_oss", "phi3")
_READ = {*_SIZES.values(), *_WIDTH.values(), "rope.freq_base", "attention.sliding_window_pattern"}
_HARMLESS = re.compile(
    r"vocab_size|tensor_data_layout|pooling_type|attention\.(?:scale|layer_norm(?:_rms)?_epsilon)"
    r"|(?:attn|final)_logit_softcapping|expert_(?:weights_scale|weights_norm|gating_func)"
    r"|(?:logit|embedding|residual)_scale|rope\.(?:local\.)?freq_base(?:_swa)?"
    r"|rope\.scaling\.(?:attn_factor|finetuned|original_context_length|yarn_\w+)"
)
"""Matches keys that change no size of a model. The context length of the model is that of the metadata."""
_SIZE = re.compile(r"(?:_|\.)(?:count|length|size|rank|dim|layers)(?:_\w+)?$")
"""Matches keys whose names say that they are a size. The figures would be wrong without it."""
_MOST_DOUBTS = 20


def _doubts(path: Path, family: str, spec: ModelSpec, own: dict[str, Any]) -> list[str]:
    """Return why the figures may be inexact: keys that change them, but that llmbench does not read.

    own: the keys of the architecture, without its name. Raises UnsupportedError for a size that the spec does not have.
    """
    read = _READ | set(_FURTHER_SIZES.get(family, {}).values())
    agree: dict[str, set[Any]] = {
        "attention.causal": {True},
        "attention.key_length": {mixer.key_dim for mixer in spec.attentions},
        "attention.value_length": {mixer.value_dim for mixer in spec.attentions},
        "rope.dimension_count": {mixer.rotated_heads.width for mixer in spec.attentions if mixer.rotated_heads},
    }
    if family in _WINDOWED:
        read.add("attention.sliding_window")
    if own.get("rope.scaling.type") == "linear":
        read |= {"rope.scaling.type", "rope.scaling.factor"}
    elif family == "gpt_oss":
        agree |= _GPT_OSS_SCALING
    doubts = []
    for key, value in own.items():
        off = value in (False, 0, "", "none") and key not in agree
        if key in read or off or _HARMLESS.fullmatch(key) or agree.get(key) == {value}:
            continue
        shown = "an array" if value is None else short(str(value))
        if _SIZE.search(key):
            raise UnsupportedError(
                f"{path}: llmbench does not read {short(key)} = {shown}, or the spec has another size",
                hint=f"name the model, for example `llmbench params MODEL --weights {path}`",
            )
        doubts.append(f"key {short(key)} = {shown} of the GGUF file is not read")
    return doubts


_GPT_OSS_SCALING: dict[str, set[Any]] = {"rope.scaling.type": {"yarn"}, "rope.scaling.factor": {32.0}}
"""The scaling of RoPE that the spec of gpt-oss has."""


def _window_pattern(path: Path, metadata: dict[str, Any]) -> dict[str, int]:
    """Return how often a layer of Gemma 3 has no window, if the metadata says it. llama.cpp's default is that of
    transformers: every sixth layer."""
    key = "gemma3.attention.sliding_window_pattern"
    if key not in metadata:
        return {}
    every = metadata[key]
    if type(every) is not int:
        raise UnsupportedError(
            f"{path}: {key} is not a number, and llmbench does not read other patterns of windows",
            hint=f"name the model, for example `llmbench params MODEL --weights {path}`",
        )
    return {"sliding_window_pattern": every}
