"""Finds the text part of a multimodal config (vision, audio, speech). All figures but the bytes of weights are those of
this text part. Each multimodal config gets a note that says so. `towers` counts the other parts.
"""

from __future__ import annotations

import re
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.huggingface.config import TOKEN_KEYS
from llmbench.spec.huggingface.facts import facts, states_rotation
from llmbench.spec.huggingface.unread_keys import OTHER_MODALITIES, names_a_size

TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config", "llm_cfg")
"""Config keys that can contain the text part of a multimodal config."""

MOST_PARTS = 3
"""The largest number of text parts inside each other."""

_LLAVA = re.compile(r"llava(_|$)")
"""Matches the model types of LLaVA's own code. Its configs have no object for the text part: the keys of the text part
are at the top level."""

_LLAVA_CLASS = re.compile(r"Llava(\w+)ForCausalLM$")
"""Matches the class of LLaVA's own code, whose name contains the name of the text part (LlavaMistralForCausalLM)."""

_LLAVA_TEXT_TYPES = {"qwen": "qwen2"}
"""Maps the name of a text part in LLaVA's own code to its model type, if they differ."""

_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
"""Config keys that a text part of LLaVA's own code always states."""

_VISION_KEYS = re.compile(
    "vision_config$|(image|video|vision_start|vision_end|vision)_token_id$|"
    "mm_|image_|vision_tower|(tune|freeze|unfreeze|use)_mm_|tokenizer_(model_max_length|padding_side)"
)
"""Matches the config keys of the vision part, in configs whose text part is at the top level."""

_REFUSED = {
    "florence2": "its text part is an encoder-decoder inside a larger model",
    "minicpmv": "its config does not name the type of the language model",
    "minicpmo": "its config does not name the type of the language model",
}


def other_modalities(values: dict[str, Any]) -> list[str]:
    """Return the config keys of the parts for other modalities than text. Only the bytes of weights cover these parts.

    The keys are those that the config has, except the ids of tokens, and those that its class in transformers adds.
    """
    own = [key for key, value in values.items() if value and OTHER_MODALITIES.search(key)]
    added = facts().get(str(values.get("model_type")), {}).get("other_modalities", [])
    defaults = {key for key in added if values.get(key, {}) == {}}
    return sorted({key for key in own if not key.endswith(TOKEN_KEYS)} | defaults)


def parts_with_text(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a config and the text parts inside it, from the outermost to the innermost part."""
    parts = [values]
    while len(parts) <= MOST_PARTS and (key := _text_key(parts[-1])) is not None:
        parts.append(parts[-1][key])
    return parts


def _text_key(values: dict[str, Any]) -> str | None:
    """Return the config key of the text part of a config. None: it has no such key.

    Raises SpecError for a text part that is no object.
    """
    stated = [key for key in TEXT_KEYS if values.get(key) is not None]
    for key in stated:
        if not isinstance(values[key], dict):
            raise SpecError(f"config {key}: must be an object, not {str(values[key])[:60]!r}")
    return next(iter(stated), None)


def text_part(values: dict[str, Any], notes: list[str], depth: int = 0) -> dict[str, Any]:
    """Return the text part of a multimodal config. Any other config is returned unchanged.

    The text part keeps its own keys and gets `tie_word_embeddings` (see `_tied`).

    - notes: the list to which notes for the user are appended.
    - depth: the number of outer configs that surround `values`.

    Raises UnsupportedError if the text part is not supported, has no model type, or lacks a size that the outer config
    states. Raises SpecError if text parts are nested more than 3 levels deep.
    """
    kind = str(values.get("model_type"))
    if kind in _REFUSED:
        raise UnsupportedError(
            f"model type `{kind}` is not supported: {_REFUSED[kind]}", hint="use the config.json of its language model"
        )
    if depth > MOST_PARTS:
        raise SpecError(f"config: text parts are nested more than {MOST_PARTS} levels deep")
    key = _text_key(values)
    default = facts().get(kind, {}).get("text_config") or {}
    if key is None and (flat := _flat_text_part(values, kind)) is not None:
        notes.append(f"multimodal config `{kind}`: all figures but the bytes of weights are those of its text part")
        return flat
    if key is not None:
        part = dict(values[key])
        if part.get("model_type", default.get("model_type")) == default.get("model_type"):
            part = {name: usual for name, usual in default.get("sets", {}).items() if not _overrules(part, name)} | part
        notes.append(
            f"multimodal config `{kind}`: all figures but the bytes of weights are those of its text part, {key}"
        )
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
    _expect_sizes(values, kind, part, key or default["key"], whole=key is not None)
    tied = _tied(values, kind, part, notes)
    if tied is not None:
        part["tie_word_embeddings"] = tied
    return text_part(part, notes, depth + 1)


def _overrules(part: dict[str, Any], name: str) -> bool:
    """Return whether a text part states the value of the key `name`: RoPE also under the older keys."""
    return name in part or (name == "rope_parameters" and states_rotation(part))


def _flat_text_part(values: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Return the text part whose keys are at the top level of a config, or None if there is no such text part."""
    record = facts().get(kind, {})
    if record.get("flat"):
        text_type = record["text_config"]["model_type"]
        if not any(key in facts()[text_type]["defaults"] and names_a_size(key, value) for key, value in values.items()):
            return None
    elif _LLAVA.match(kind):
        text_type = _llava_text_type(values, kind)
        names = facts().get(text_type, {}).get("attribute_map", {})
        if any(key not in values and names.get(key) not in values for key in _SIZES):
            return None
    else:
        return None
    part = {name: value for name, value in values.items() if not _VISION_KEYS.match(name)}
    part["model_type"] = text_type
    if record.get("flat"):
        # The class of the composite keeps the key `tie_word_embeddings` for itself.
        part.pop("tie_word_embeddings", None)
        outer = values.get("tie_word_embeddings")
        outer = record["defaults"]["tie_word_embeddings"] if outer is None else outer
        part["tie_word_embeddings"] = outer or (bool(record.get("tied_by_text")) and _own_tying(part))
    return part


def _llava_text_type(values: dict[str, Any], kind: str) -> str:
    """Return the model type of the text part in LLaVA's own code. The class has precedence over the model type."""
    classes = values.get("architectures")
    found = _LLAVA_CLASS.match(str(classes[0])) if isinstance(classes, list) and classes else None
    name = found[1].lower() if found else kind.removeprefix("llava").removeprefix("_") or "llama"
    return _LLAVA_TEXT_TYPES.get(name, name)


def _expect_sizes(values: dict[str, Any], kind: str, part: dict[str, Any], key: str, *, whole: bool) -> None:
    """Raise UnsupportedError if the outer config states a size that the text part lacks.

    The text part would then get the default of its class, which differs from the size that the outer config states.

    - key: the config key of the text part.
    - whole: the config has this key. If it does not, no key of the outer config may name a size.
    """
    record, outer = facts().get(part["model_type"], {}), facts().get(kind, {}).get("defaults", {})
    usual, names = record.get("defaults", {}), record.get("attribute_map", {})
    for name, value in values.items():
        if name in TEXT_KEYS or name in outer or not names_a_size(name, value):
            continue
        own = names.get(name, name)
        if whole and (own not in usual or name in part or own in part or usual[own] == value):
            continue
        raise UnsupportedError(
            f"config `{kind}` states {name[:60]} = {str(value)[:60]}, but its text part {key} does not",
            hint=f"move the keys of the language model into {key}, in a copy of config.json",
        )


def _tied(values: dict[str, Any], kind: str, part: dict[str, Any], notes: list[str]) -> Any:
    """Return the value of `tie_word_embeddings`. None: the text part or its class decides.

    The key of the outer config has precedence (LFM2-VL: `tie_embedding`). Some classes in transformers tie the head if
    only the text part says so (`tied_by_text`). If both parts lack the key, the class of the whole model decides for a
    text part without a language-model class. For other text parts, it only unties the head: classes that tie it by
    default leave it untied when they load a checkpoint with two matrices.
    """
    record, stated = facts().get(kind, {}), values.get("tie_embedding", values.get("tie_word_embeddings"))
    if stated is False and record.get("tied_by_text") and _own_tying(part):
        notes.append(f"the head is tied: the text part of `{kind}` has precedence over tie_word_embeddings = False")
        return True
    if stated is not None:
        if part.get("tie_word_embeddings", stated) != stated:
            notes.append(f"tie_word_embeddings = {stated} of the outer config is used; the text part has another value")
        return stated
    if "tie_word_embeddings" in part:
        return None
    usual = record.get("defaults", {}).get("tie_word_embeddings")
    if "class" not in facts().get(part["model_type"], {"class": None}):
        return bool(usual)
    return False if usual is False and not record.get("tied_by_text") else None


def _own_tying(part: dict[str, Any]) -> bool:
    """Return whether a text part is tied by its own key, or by the default of its class."""
    usual = facts().get(part["model_type"], {}).get("defaults", {}).get("tie_word_embeddings", False)
    stated = part.get("tie_word_embeddings")
    return bool(usual if stated is None else stated)
