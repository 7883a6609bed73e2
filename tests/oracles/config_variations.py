"""Small changes of a class's default configuration, one key each: what an importer must survive.

``variations("llama")`` yields configs as a config.json would hold them: the model type, few layers, and one key with
another plausible value. Every other key is missing, which means the class's default. Configs that transformers refuses
are left out.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from . import transformers_meta as meta

# Enough layers for every pattern of the classes (one attention layer in eight), few enough to build fast.
LAYERS = 8
_LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)

# What a class needs before it can be built at all, or before its distinctive layers appear within LAYERS.
REQUIRED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2, 5]},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 2048, "ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1},
        "tie_word_embeddings": False,
    },
    "deepseek_ocr2_text": {"num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 31},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
    },
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba", "mamba", "attention"] + ["mamba"] * 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"] * 2 + ["conv", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 2 + ["conv", "conv"]},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"is_decoder": True},
}

# Keys that cannot change a count: identifiers, training, generation, numerics.
_IRRELEVANT = re.compile(
    r"_token_id$|_token_index$|_token_ids$|dropout|_pdrop$|layerdrop|initializer|init_std|^use_cache$|^return_|"
    r"^output_(attentions|hidden_states|router_logits)$|_eps$|epsilon$|aux_loss|jitter|^id2label|^label2id|"
    r"^architectures$|^dtype$|^transformers_version$|^problem_type$|^rope_|_theta$|^pretraining_tp$|^summary_|"
    r"^chunk_size_feed_forward$|softcap|^mask_(time|feature)|_loss_|^vision|^image|^video|^audio"
)

_CHOICES: dict[str, list[Any]] = {
    "feed_forward_proj": ["relu", "gated-gelu", "gated-silu"],
    "hidden_act": ["relu2", "gelu"],
    "position_embedding_type": ["relative_key", "rope", "nope"],
    "norm_type": ["rms_norm", "layer_norm"],
    "topk_method": ["group_limited_greedy"],
    "attention_type": ["original_full"],
    "encoder_attention_type": ["local", "transient-global"],
}


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A default configuration with one changed key. A key of the text part is named with its path."""

    key: str
    value: Any
    config: dict[str, Any]


def required(model_type: str) -> dict[str, Any]:
    """The keys that a class needs beside its defaults. With a list of the layers' types comes their number."""
    keys = dict(REQUIRED.get(model_type, {}))
    for name in ("layer_types", "mlp_layer_types"):
        if name in keys:
            keys["num_hidden_layers"] = len(keys[name])
    return keys


def base_config(model_type: str) -> dict[str, Any]:
    """The class's defaults with few layers, as a config.json would say it."""
    cls = CONFIG_MAPPING[model_type]
    short = {"model_type": model_type, **_few_layers(cls), **REQUIRED.get(model_type, {})}
    plain = {"model_type": model_type, **REQUIRED.get(model_type, {})}
    for key, part in text_parts(model_type):
        short[key] = {**_few_layers(part), **REQUIRED.get(part.model_type, {})}
    try:
        meta.make_config(short)
    except Exception:
        # The default of another key fixes the number of layers (a list with one entry for each).
        return plain
    return short


def _few_layers(cls: type[PreTrainedConfig]) -> dict[str, int]:
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.name in _LAYER_KEYS}
    return {key: LAYERS for key, value in defaults.items() if isinstance(value, int) and value > LAYERS}


def text_parts(model_type: str) -> list[tuple[str, type[PreTrainedConfig]]]:
    """Keys and classes of a composite's text configurations, unless a class of its own can load them.

    Those that can (``gemma3_text``) are varied under their own model type.
    """
    parts: list[tuple[str, type[PreTrainedConfig]]] = []
    keys = ("encoder", "decoder") if model_type == "t5gemma" else meta.TEXT_KEYS
    try:
        hf_config = vars(CONFIG_MAPPING[model_type]())
    except Exception:
        return []
    for key in keys:
        inner = hf_config.get(key)
        if isinstance(inner, PreTrainedConfig) and inner.model_type not in meta.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            parts.append((key, type(inner)))
    return parts


def hidden_keys(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Keys that a class reads out of a config.json without having them as fields, and their defaults.

    They sit in ``kwargs.pop("key", default)`` of ``__post_init__``; a computed default becomes None.
    """
    keys: dict[str, Any] = {}
    for ancestor in cls.__mro__:
        if ancestor is PreTrainedConfig:
            break
        method = ancestor.__dict__.get("__post_init__")
        if method is None:
            continue
        source = inspect.getsource(method)
        for key, default in re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"(?:,\s*([^()]+?))?\s*\)", source):
            keys.setdefault(key, _literal(default))
    return keys


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def variations(model_type: str) -> Iterator[Variation]:
    """Every change of one key of the class's default configuration that transformers accepts, three values a key."""
    config = base_config(model_type)
    hf_config, _ = meta.make_config(config)
    yield from _of_class(config, hf_config, ())
    for key, _ in text_parts(model_type):
        yield from _of_class(config, getattr(hf_config, key), (key,))


def _of_class(config: dict[str, Any], hf_config: PreTrainedConfig, path: tuple[str, ...]) -> Iterator[Variation]:
    values = config.get(path[0], {}) if path else config
    defaults: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(type(hf_config)):
        factory = f.default_factory
        defaults[f.name] = (factory() if factory is not dataclasses.MISSING else f.default, f.type)
    for key, default in hidden_keys(type(hf_config)).items():
        defaults.setdefault(key, (default, None))
    for key, (default, annotation) in defaults.items():
        if _IRRELEVANT.search(key):
            continue
        taken = 0
        for value in _other_values(key, values.get(key, default), _derived(hf_config, key), annotation):
            inner = {**values, key: value}
            changed = {**config, path[0]: inner} if path else inner
            try:
                meta.make_config(changed)
            except Exception:
                continue
            yield Variation(key=".".join([*path, key]), value=value, config=changed)
            taken += 1
            if taken == 3:
                break


def _derived(hf_config: PreTrainedConfig, key: str) -> Any:
    """What the class makes of a missing key; not getattr, which raises for a key that differs by layer."""
    return vars(hf_config).get(key)


def _other_values(key: str, current: Any, derived: Any, annotation: Any) -> Iterator[Any]:
    """Plausible other values of a key, the most telling first."""
    if current is None or current is dataclasses.MISSING:
        if isinstance(derived, (bool, int, list)) and derived is not None:
            yield from _other_values(key, derived, derived, None)
        elif key in _CHOICES:
            yield from _CHOICES[key]
        else:
            yield from _by_type(key, annotation)
    elif isinstance(current, bool):
        yield not current
    elif isinstance(current, int):
        if _optional(annotation):
            yield None
        yield from ([current // 2] if current > 1 else []) + [current * 2 if current else 1, current + 1]
        if current > 1:
            yield 1
        if current > 0:
            yield 0
    elif isinstance(current, float):
        yield from (current / 2, current * 2)
    elif isinstance(current, str):
        choices = _CHOICES.get(key) or _literals(annotation)
        yield from (c for c in choices if c != current)
    elif isinstance(current, list):
        yield from _other_lists(key, current)
    elif isinstance(current, dict):
        for inner, value in current.items():
            if isinstance(value, (bool, int)) and not _IRRELEVANT.search(inner):
                for other in _other_values(inner, value, value, None):
                    yield {**current, inner: other}


def _other_lists(key: str, current: list[Any]) -> Iterator[Any]:
    if not current:
        yield from ([0], [1], [1, 3])
        return
    distinct = sorted({x for x in current if isinstance(x, (str, int))}, key=str)
    for other in [*distinct, *_LAYER_KINDS]:
        if isinstance(current[0], str) and isinstance(other, str) and other != current[0]:
            yield [other, *current[1:]]
            yield [other] * len(current)
    if isinstance(current[0], bool):
        yield [not current[0], *current[1:]]
    elif isinstance(current[0], int):
        yield [*current[:-1], current[-1] // 2 if current[-1] > 1 else current[-1] + 1]
        yield [x // 2 or 1 for x in current]
        yield current[:-1]


# Kinds of layers that configurations list; a class raises on those that it does not know.
_LAYER_KINDS = (
    "full_attention",
    "sliding_attention",
    "linear_attention",
    "conv",
    "mamba",
    "moe",
    "attention",
    "recurrent",
    "hybrid",
    "dense",
    "sparse",
    "mlp",
)


def _by_type(key: str, annotation: Any) -> Iterator[Any]:
    """Values for a key without a default, from its annotation alone; all kinds where there is none."""
    kinds = _kinds(annotation)
    if bool in kinds or annotation is None:
        yield from (True, False)
    if int in kinds or annotation is None:
        yield from (4, 1, 64, 512)
    if list in kinds:
        yield from ([0], [1, 2])
        for one, two in (
            ("full_attention", "sliding_attention"),
            ("sparse", "dense"),
            ("mamba", "attention"),
        ):
            yield [one, two] * (LAYERS // 2)
    if str in kinds:
        yield from _literals(annotation)


def _kinds(annotation: Any) -> set[Any]:
    if isinstance(annotation, str):
        names = {"int": int, "bool": bool, "str": str, "list": list, "float": float, "dict": dict}
        return {kind for name, kind in names.items() if re.search(rf"\b{name}\b", annotation)}
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(annotation) for kind in _kinds(part)}
    if origin is typing.Literal:
        return {str}
    return {origin or annotation}


def _literals(annotation: Any) -> list[str]:
    if isinstance(annotation, str):
        return re.findall(r"['\"]([\w-]+)['\"]", annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return [a for a in typing.get_args(annotation) if isinstance(a, str)]
    return [literal for part in typing.get_args(annotation) for literal in _literals(part)]


def _optional(annotation: Any) -> bool:
    return type(None) in _kinds(annotation) or (isinstance(annotation, str) and "None" in annotation)
