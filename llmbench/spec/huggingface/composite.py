"""Finds the text part of a multimodal config (vision, audio, speech). All figures cover only the text part."""

from __future__ import annotations

import re
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.huggingface.facts import facts

TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Config keys that can contain the text part."""

_FLAT = {
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""Model types whose older configs have the keys of the text part at the top level, each with the type of its text
part."""

_VISION_KEYS = re.compile(
    "vision_config$|(image|video|vision_start|vision_end|vision)_token_id$|"
    "mm_|image_|vision_tower|(tune|freeze|unfreeze|use)_mm_|tokenizer_(model_max_length|padding_side)"
)
"""Config keys that describe the vision part in the older configs of `_FLAT`."""

_REFUSED = {
    "florence2": "its text part is an encoder-decoder inside a larger model",
    "minicpmv": "its config does not name the type of the language model",
    "minicpmo": "its config does not name the type of the language model",
}


def text_part(values: dict[str, Any], notes: list[str], depth: int = 0) -> dict[str, Any]:
    """Return the text part of a multimodal config, and any other config unchanged. Notes are appended to `notes`.

    The keys of the outer config are left out, except tie_word_embeddings. The value of the outer config has precedence
    over the value of the text part. If both are missing, the default of the class that contains the head applies.
    Raises UnsupportedError if the text part has no known model type.
    """
    outer_type = values.get("model_type")
    kind = str(outer_type)
    if kind in _REFUSED:
        raise UnsupportedError(
            f"model type `{kind}` is not supported: {_REFUSED[kind]}", hint="use the config.json of its language model"
        )
    key = next((key for key in TEXT_KEYS if isinstance(values.get(key), dict)), None)
    if depth > 3:
        raise SpecError("config: text parts are nested more than 3 levels deep")
    default = facts().get(kind, {}).get("text_config") or {}
    if key is not None:
        part = dict(values[key])
        notes.append(f"multimodal config `{kind}`: the figures cover only its text part, {key}")
    elif kind in _FLAT and "hidden_size" in values:
        part = {name: value for name, value in values.items() if not _VISION_KEYS.match(name)}
        part["model_type"] = _FLAT[kind]
        whole = facts().get(kind, {}).get("defaults", {})
        part.setdefault("tie_word_embeddings", whole.get("tie_word_embeddings", False))
        notes.append(f"multimodal config `{kind}`: the figures cover only its text part")
        return part
    elif default.get("key") in TEXT_KEYS:
        part = dict(default.get("when_missing") or {})
        notes.append(
            f"multimodal config `{kind}` without {default['key']}: the figures cover only its default text part"
        )
    else:
        return values
    if part.get("model_type") is None:
        part["model_type"] = default.get("model_type")
    if not isinstance(part["model_type"], str):
        raise UnsupportedError(f"config `{kind}`: its text part has no model_type, and its class has no default")
    if part.get("use_mla") is False:
        raise UnsupportedError(f"config `{kind}`: its text part has use_mla = false, but only true is supported")
    for name, usual in (("use_mla", True), ("lm_head", True), ("rm_head", False)):  # DeepSeek-VL2
        if part.get(name) is usual:
            del part[name]
    stated = values.get("tie_word_embeddings")
    if stated is not None:
        if part.get("tie_word_embeddings", stated) != stated:
            notes.append(f"tie_word_embeddings = {stated} of the outer config is used; its text part has another value")
        part["tie_word_embeddings"] = stated
    elif "tie_word_embeddings" not in part and "class" not in facts().get(part["model_type"], {"class": None}):
        # The text part has no class of its own. The class of the whole model has the head and the default for tying it.
        whole = facts().get(kind, {}).get("defaults", {})
        part["tie_word_embeddings"] = whole.get("tie_word_embeddings", False)
    return text_part(part, notes, depth + 1)
