"""Finds the text part of a multimodal config (vision, audio, speech). All figures but the bytes of weights are those of
this text part. Each multimodal config gets a note that says so. `towers` counts the other parts.
"""

from __future__ import annotations

import re
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.huggingface.config import TOKEN_KEYS
from llmbench.spec.huggingface.facts import facts

TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Config keys that can contain the text part of a multimodal config."""

_FLAT = {
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""Maps multimodal model types to the model type of their text part.

Older configs of these types have no object for the text part: its keys are at the top level.
"""

_VISION_KEYS = re.compile(
    "vision_config$|(image|video|vision_start|vision_end|vision)_token_id$|"
    "mm_|image_|vision_tower|(tune|freeze|unfreeze|use)_mm_|tokenizer_(model_max_length|padding_side)"
)
"""Matches the config keys that belong to the vision part, in the older configs that `_FLAT` describes."""

_OTHER_MODALITIES = re.compile(
    "vision|visual|image|(^|_)img_|video|audio|speech|pixel|projector(?!s)|perceiver|qformer|resampler|(^|_)mm_|embd_layer$"
)
"""Matches the config keys that belong to vision, audio and other modalities."""

_REFUSED = {
    "florence2": "its text part is an encoder-decoder inside a larger model",
    "minicpmv": "its config does not name the type of the language model",
    "minicpmo": "its config does not name the type of the language model",
}


def other_modalities(values: dict[str, Any]) -> list[str]:
    """Return the config keys of the parts for other modalities than text. Only the bytes of weights cover these parts.

    The keys are those that the config has, except the ids of tokens, and those that its class in transformers adds.
    """
    own = [key for key, value in values.items() if value and _OTHER_MODALITIES.search(key)]
    added = facts().get(str(values.get("model_type")), {}).get("other_modalities", [])
    defaults = {key for key in added if values.get(key, {}) == {}}
    return sorted({key for key in own if not key.endswith(TOKEN_KEYS)} | defaults)


def text_part(values: dict[str, Any], notes: list[str], depth: int = 0) -> dict[str, Any]:
    """Return the text part of a multimodal config. Any other config is returned unchanged.

    The text part keeps its own keys and gets `tie_word_embeddings` from the outer config. If the outer config does not
    have this key, the value in the text part counts. If both lack the key, the default comes from the transformers
    class that contains the language-model head.

    - notes: the list to which notes for the user are appended.
    - depth: the number of outer configs that surround `values`.

    Raises UnsupportedError if the text part is not supported or has no model type, and SpecError if text parts are
    nested more than 3 levels deep.
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
        notes.append(
            f"multimodal config `{kind}`: all figures but the bytes of weights are those of its text part, {key}"
        )
    elif kind in _FLAT and "hidden_size" in values:
        part = {name: value for name, value in values.items() if not _VISION_KEYS.match(name)}
        part["model_type"] = _FLAT[kind]
        whole = facts().get(kind, {}).get("defaults", {})
        part.setdefault("tie_word_embeddings", whole.get("tie_word_embeddings", False))
        notes.append(f"multimodal config `{kind}`: all figures but the bytes of weights are those of its text part")
        return part
    elif default.get("key") in TEXT_KEYS:
        part = dict(default.get("when_missing") or {})
        notes.append(
            f"multimodal config `{kind}` without {default['key']}: all figures but the bytes of weights are those of "
            "its default text part"
        )
    else:
        return values
    if part.get("model_type") is None:
        part["model_type"] = default.get("model_type")
    if not isinstance(part["model_type"], str):
        raise UnsupportedError(f"config `{kind}`: the text part has no model_type, and transformers has no default")
    if part.get("use_mla") is False:
        raise UnsupportedError(f"config `{kind}`: its text part has use_mla = false, but only true is supported")
    # DeepSeek-VL2 has these keys. With these values, they change nothing.
    for name, usual in (("use_mla", True), ("lm_head", True), ("rm_head", False)):
        if part.get(name) is usual:
            del part[name]
    stated = values.get("tie_word_embeddings")
    if stated is not None:
        if part.get("tie_word_embeddings", stated) != stated:
            notes.append(f"tie_word_embeddings = {stated} of the outer config is used; the text part has another value")
        part["tie_word_embeddings"] = stated
    elif "tie_word_embeddings" not in part and "class" not in facts().get(part["model_type"], {"class": None}):
        # transformers has no language-model class for this text part. The class of the whole model contains the head,
        # so its default for tie_word_embeddings applies.
        whole = facts().get(kind, {}).get("defaults", {})
        part["tie_word_embeddings"] = whole.get("tie_word_embeddings", False)
    return text_part(part, notes, depth + 1)
