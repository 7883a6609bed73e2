"""Exact counts from the transformers classes, built on the meta device: an oracle for our arithmetic.

``measure(config)`` takes a Hugging Face ``config.json`` as a dict, builds the class that a user would load,
without memory for its weights, and sorts every parameter into one of the components below by its name and
by the classes of the modules around it. It knows nothing of our formulas, so agreement means something.

Conventions
-----------
* total: unique parameters, a tied matrix once. Buffers are no parameters, stored ones are listed apart.
  Layers for multi-token prediction are absent, because no transformers class builds them.
* Repositories with vision or audio: the text part only, tied as config.json says or else its own class.
* Components are disjoint and sum to the total:
  embedding (token tables, per-layer ones included), position_embedding, token_type_embedding, lm_head (0
  when tied; its bias stays here), attention (q, k, v, o, output gates, latent projections, biases),
  attention_norms (norms of q, k, v and of latents), attention_extra (sinks, relative bias, indexer,
  compressor and other things beside the projections), mixer_ssm (state-space and linear mixers whole, inner
  norms and convolutions included), mlp (dense feed-forward), experts (routed only), shared_experts (with
  their gate), router, norms (layer, final and embedding norms), other (MLM heads, projections of
  embeddings, hyper-connections, scales).
* active: all but the experts (of attention too), plus ``top_k / num_experts`` of the experts.
  active_no_embeddings: less embedding, position_embedding, token_type_embedding and lm_head.
  active_no_input_embedding: the former plus vocab x hidden and the head's bias; the head counts even when
  tied.
  active_matmul: of these, elements of matrices that a token is multiplied with; no norms, biases,
  convolutions, state-space vectors, sinks or tables. Forward FLOPs without attention scores are twice this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from .transformers_components import classify, is_text

COMPONENTS = (
    "embedding",
    "position_embedding",
    "token_type_embedding",
    "lm_head",
    "attention",
    "attention_norms",
    "attention_extra",
    "mixer_ssm",
    "mlp",
    "experts",
    "shared_experts",
    "router",
    "norms",
    "other",
)

# The language-model class of each model type. An encoder-decoder is loaded whole, not its decoder alone.
CLASSES: dict[str, str] = {
    **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    **MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    **MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    **{name: MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[name] for name in ("moonshine", "speech_to_text", "whisper")},
}

# The class of the whole model, for types that have parts for other modalities than text.
WHOLE_CLASSES: dict[str, str] = {
    **MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}

# Types that live on the hub as remote code. A transformers class of the same shapes stands in for three of
# them; others have no oracle here. The keys are what the stand-in needs and the original lacks.
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    # W_pack is q, k and v fused; the 13B has ALiBi instead of rotation. Neither changes a count.
    "baichuan": ("llama", {}),
    # wqkv is fused; the key `bias` is the stand-in's attention_bias.
    "internlm2": ("llama", {}),
    # Same blocks without q/k norms; the stand-in's correction buffer of the router is not in the original.
    "deepseek": ("glm4_moe", {"use_qk_norm": False, "attention_bias": False, "n_group": 1, "topk_group": 1}),
}
# Where composite types keep the configuration of their text part.
TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
# Buffers of a stand-in which the original does not have.
_NOT_IN_ORIGINAL = {"deepseek": "e_score_correction_bias"}

# Families whose code says how many experts a token takes.
_ATTENTION_EXPERTS = re.compile(r"attention\.experts\.\w+_linear\.")  # JetMoE: as many as in its feed-forwards
_FIXED_TOP_K = {"switch_transformers": 1, "nllb-moe": 2}
_TOP_K_KEYS = (
    "num_experts_per_tok",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "num_experts_per_token",
    "num_selected_experts",
    "top_k",
)


class NoOracleError(Exception):
    """No transformers class describes this configuration: remote code, or a type unknown to this release."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Counts of one configuration in elements; see the module's docstring for what each contains."""

    class_name: str
    total: int
    tied: bool
    components: dict[str, int]
    active: int
    active_no_embeddings: int
    active_no_input_embedding: int
    active_matmul: int
    persistent_buffers: dict[str, int] = field(default_factory=dict)
    flops: int | None = None


def kind_of(model_type: str) -> str:
    """The kind of a model type, by the classes that transformers has for it."""
    kinds = {
        "with other modalities": WHOLE_CLASSES,
        "encoder-decoder": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return next((kind for kind, classes in kinds.items() if model_type in classes), "other")


def collapse(name: str) -> str:
    """A parameter's name with every index replaced by N: what is equal over layers gets one name."""
    return re.sub(r"(?<=\.)\d+(?=\.)|(?<=expert_)\d+(?=\.)", "N", name)


def make_config(config: dict[str, Any]) -> tuple[Any, str]:
    """The transformers config object of a config.json, and the model type that the file names."""
    config = dict(config)
    model_type = config.get("model_type", "")
    if model_type in STAND_INS:
        stand_in, extra = STAND_INS[model_type]
        config = {**config, **extra, "model_type": stand_in}
        if model_type == "internlm2":
            config["attention_bias"] = config.get("bias", True)
    if config["model_type"] not in CONFIG_MAPPING:
        raise NoOracleError(f"transformers {transformers.__version__} does not know model type {model_type!r}")
    config_class = CONFIG_MAPPING[config["model_type"]]
    hf_config = config_class.from_dict(config_class._decode_special_floats(config))
    return hf_config, model_type


def build(config: dict[str, Any], *, eager: bool = False) -> tuple[nn.Module, Any, str]:
    """The language model on the meta device, its text configuration, and the prefix that its text part has.

    The prefix is empty unless only the class of the whole checkpoint exists, vision included.
    """
    hf_config, model_type = make_config(config)
    text = _text_config(hf_config)
    kind = text.model_type
    names = dict(CLASSES)
    whole = WHOLE_CLASSES.get(hf_config.model_type)
    if whole is not None and whole.endswith("ForCausalLM"):
        names.setdefault(hf_config.model_type, whole)
    prefix = ""
    if kind in names:
        chosen, class_name = text, names[kind]
    elif whole is not None and text is not hf_config:
        chosen, class_name, prefix = hf_config, whole, "language_model"
    else:
        raise NoOracleError(f"no language model class for {model_type!r} (text part {kind!r})")
    if text is not hf_config and (tied := _stated_tying(config)) is not None:
        chosen.tie_word_embeddings = tied
    if eager:
        chosen._attn_implementation = "eager"
        chosen._experts_implementation = "batched_mm"
    with torch.device("meta"):
        model = getattr(transformers, class_name)(chosen)
        if config.get("tie_word_embeddings") is False and getattr(hf_config, "is_encoder_decoder", False):
            _untie(model)
    if prefix and not any(prefix in name.split(".") for name, _ in model.named_modules()):
        prefix = "text_model"
    return model.eval(), text, prefix


def _stated_tying(config: dict[str, Any]) -> bool | None:
    """What a composite's config.json says of tying: on its top level, or else in its text part.

    The defaults of composite classes are no guide: those of mistral3 and kimi_k25 say tied, and rely on the
    loader, which leaves apart what a checkpoint stores twice. The defaults of their text classes are right.
    """
    inner = next((config[key] for key in TEXT_KEYS if isinstance(config.get(key), dict)), {})
    return config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))


def _untie(model: nn.Module) -> None:
    """Give the head its own matrix where the class ties whatever the config says.

    flan-t5 says ``tie_word_embeddings: false`` and its checkpoints hold both; T5Config of transformers 5
    overrules it, because the key also decides there whether the stacks share one table, which they do.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight))


def _text_config(hf_config: Any) -> Any:
    """The configuration of the text part: a sub-configuration of a multimodal type, or the object itself."""
    for key in TEXT_KEYS:
        inner = getattr(hf_config, key, None)
        if inner is not None and hasattr(inner, "model_type"):
            return _text_config(inner)
    return hf_config


def _share_of_experts(text: Any, parameters: dict[str, tuple[str, nn.Parameter, bool]]) -> tuple[int, int]:
    """(experts used by a token, experts in a layer), from the configuration and the expert weights."""
    top_k = None
    for key in _TOP_K_KEYS:
        value = getattr(text, key, None)
        if isinstance(value, list) and len(set(value)) == 1:  # hunyuan gives one for each layer
            value = value[0]
        if top_k is None and isinstance(value, int) and value > 0:
            top_k = value
    ffn = getattr(text, "ffn_config", None)  # dbrx keeps its experts' numbers one level down
    if top_k is None and ffn is not None:
        top_k = getattr(ffn, "moe_top_k", None)
    if top_k is None:
        top_k = _FIXED_TOP_K.get(text.model_type)
    of_experts = [(name, parameter) for name, (component, parameter, _) in parameters.items() if component == "experts"]
    if top_k is None and of_experts:
        raise NoOracleError(f"how many experts a token of {text.model_type!r} uses is not in its configuration")
    if top_k is None or not of_experts:
        return 1, 1
    indices: set[int] = set()
    for name, parameter in of_experts:
        index = re.search(r"experts\.(?:expert_)?(\d+)\.", name)
        if index:
            indices.add(int(index[1]))
        elif parameter.dim() >= 2:
            count = parameter.shape[0]
            ffn_experts = getattr(ffn, "moe_num_experts", None)
            return top_k, ffn_experts or count
    return top_k, max(len(indices), 1)


def measure(config: dict[str, Any], *, sequence_length: int | None = None) -> Truth:
    """Counts of the configuration's language model, and the FLOPs of a prefill if a sequence length is given.

    FLOPs: batch 1, logits for all positions, a multiply-add is two, eager attention (scores are full, no
    causal halving, windows not cut), ``top_k`` experts per token where the class computes no more (Llama 4
    runs all); encoder-decoders get as many tokens on both sides.
    ``flops`` stays None where the class's forward looks at values, which the meta device has not.
    Raises NoOracleError where transformers has no class for the configuration.
    """
    model, text, prefix = build(config, eager=sequence_length is not None)
    parameters = classify(model, prefix)
    components = dict.fromkeys(COMPONENTS, 0)
    for component, parameter, _ in parameters.values():
        components[component] += parameter.numel()
    total = sum(components.values())
    if total == 0:
        raise NoOracleError(f"no part named {prefix!r} in {type(model).__name__}")

    head = model.get_output_embeddings()
    if isinstance(head, nn.Embedding):  # fsmt names its table, and has a projection of its own beside it
        head = None
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = head is not None and id(head.weight) in tables
    head_bias = 0 if head is None or getattr(head, "bias", None) is None else head.bias.numel()
    head_matrix = 0 if head is None else head.weight.numel()

    top_k, experts = _share_of_experts(text, parameters)

    def used(name: str) -> int:
        component, parameter, _ = parameters[name]
        routed = component == "experts" or _ATTENTION_EXPERTS.search(name) is not None
        return parameter.numel() * top_k // experts if routed else parameter.numel()

    active = sum(used(name) for name in parameters)
    no_embeddings = active - sum(
        components[name] for name in ("embedding", "position_embedding", "token_type_embedding", "lm_head")
    )
    alone = not getattr(text, "is_encoder_decoder", False)  # a decoder without encoder does not use its cross-attention
    matmul = head_matrix + sum(
        used(name)
        for name, (component, _, matrix) in parameters.items()
        if matrix and component not in ("lm_head", "embedding") and not (alone and ".encoder_attn." in name)
    )
    skipped = _NOT_IN_ORIGINAL.get(config.get("model_type", ""))
    buffers: dict[str, int] = {}
    names = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in names or not is_text(name, prefix) or (skipped and skipped in name):
            continue
        buffers[collapse(name)] = buffers.get(collapse(name), 0) + tensor.numel()
    return Truth(
        class_name=type(model).__name__,
        total=total,
        tied=tied,
        components=components,
        active=active,
        active_no_embeddings=no_embeddings,
        active_no_input_embedding=no_embeddings + head_matrix + head_bias,
        active_matmul=matmul,
        persistent_buffers=buffers,
        flops=None if sequence_length is None else prefill_flops(model, sequence_length),
    )


def prefill_flops(model: nn.Module, sequence_length: int) -> int | None:
    """What FlopCounterMode counts for one forward on meta; None where the forward needs values."""
    from torch.utils.flop_counter import FlopCounterMode

    # Without a cache the mask code looks for packed sequences in the positions' values, which meta has not.
    if getattr(model.config, "use_cache", None) is False:
        model.config.use_cache = True
    tokens = torch.zeros((1, sequence_length), dtype=torch.long, device="meta")
    inputs = {"input_ids": tokens}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            model(**inputs)
    except (NotImplementedError, RuntimeError):
        return None
    return counter.get_total_flops()
