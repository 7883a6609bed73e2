"""The language model inside a config of several parts (vision, audio, speech): the figures are of it
alone."""

from __future__ import annotations

import re
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.huggingface.facts import facts

TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a config keeps its text part."""

_FLAT = {
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""Older files of these types keep the text part's keys at the top; as which type those are read."""

_VISION_KEYS = re.compile(
    "vision_config$|(image|video|vision_start|vision_end|vision)_token_id$|"
    "mm_|image_|vision_tower|(tune|freeze|unfreeze|use)_mm_|tokenizer_(model_max_length|padding_side)"
)
"""Keys of such files that speak of images."""

_REFUSED = {
    "florence2": "its text part is an encoder-decoder inside a larger one",
    "minicpmv": "which language model it holds is only in its code",
    "minicpmo": "which language model it holds is only in its code",
}


def text_part(values: dict[str, Any], notes: list[str], depth: int = 0) -> dict[str, Any]:
    """The text part of a config, or the config itself where it has no parts.

    Keys of the outer config speak of the whole and stay behind, except tying: what the outer config states
    goes before what the text part states; where neither speaks, the default is that of the class that holds
    the head."""
    outer_type = values.get("model_type")
    kind = str(outer_type)
    if kind in _REFUSED:
        raise UnsupportedError(f"model type `{kind}` is not supported: {_REFUSED[kind]}")
    key = next((key for key in TEXT_KEYS if isinstance(values.get(key), dict)), None)
    if depth > 3:
        raise SpecError("config: text parts are nested too deeply")
    default = facts().get(kind, {}).get("text_config") or {}
    if key is not None:
        part = dict(values[key])
        notes.append(f"multimodal config `{kind}`: the figures are of its text part, {key}")
    elif kind in _FLAT and "hidden_size" in values:
        part = {name: value for name, value in values.items() if not _VISION_KEYS.match(name)}
        part["model_type"] = _FLAT[kind]
        whole = facts().get(kind, {}).get("defaults", {})
        part.setdefault("tie_word_embeddings", whole.get("tie_word_embeddings", False))
        notes.append(f"multimodal config `{kind}`: the figures are of its text part")
        return part
    elif default.get("key") in TEXT_KEYS:
        part = dict(default.get("when_missing") or {})
        notes.append(f"multimodal config `{kind}` without {default['key']}: the figures are of its default text part")
    else:
        return values
    if part.get("model_type") is None:
        part["model_type"] = default.get("model_type")
    if not isinstance(part["model_type"], str):
        raise UnsupportedError(f"config `{kind}`: the model type of its text part is not known")
    if part.get("use_mla") is False:
        raise UnsupportedError(f"config `{kind}`: a text part with use_mla = false is not supported")
    for name, usual in (("use_mla", True), ("lm_head", True), ("rm_head", False)):  # DeepSeek-VL2
        if part.get(name) is usual:
            del part[name]
    stated = values.get("tie_word_embeddings")
    if stated is not None:
        if part.get("tie_word_embeddings", stated) != stated:
            notes.append(f"tie_word_embeddings: {stated} outside the text part, which says otherwise, is followed")
        part["tie_word_embeddings"] = stated
    elif "tie_word_embeddings" not in part and "class" not in facts().get(part["model_type"], {"class": None}):
        # A text part without a class of its own: the class of the whole holds its head.
        whole = facts().get(kind, {}).get("defaults", {})
        part["tie_word_embeddings"] = whole.get("tie_word_embeddings", False)
    return text_part(part, notes, depth + 1)
