"""What a key of a Hugging Face config can change, if no importer reads it.

A key that names a size can change each figure by a large factor. A config with such a key is refused. A harmless key
changes neither a figure nor the shape of a weight. Any other key makes the spec approximate.
"""

from __future__ import annotations

import re
from typing import Any

_BY_REASON = {
    "origin and loading": """
        architecture architectures auto_map compression_config finetuning_task is_llama_config
        llama_config prefix quantization quantization_config router_dtype task_specific_params
        tokenizer_class torchscript transformers.js_config transformers_version unsloth_fixed
        unsloth_version
    """,
    "tokens and generation": """
        bad_words_ids diversity_penalty do_sample early_stopping exponential_decay_length_penalty
        force_bos_token_to_be_generated length_penalty max_length max_seq_len max_sequence_length
        min_length model_max_length n_ctx n_positions_train num_beam_groups num_return_sequences
        output_scores pad_key_length padding_idx padding_side predict_special_tokens
        remove_invalid_values repetition_penalty router_ignore_padding_tokens seq_length temperature
        top_k top_p typical_p
    """,
    "initialisation": """
        init_method rescale_every use_mup
    """,
    "dropout and regularisation": """
        neftune_noise_alpha
    """,
    "norm epsilons (read by `norm`)": """
        layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon norm_topk_eps rms_norm_eps
    """,
    "losses and router training": """
        load_balance_coeff loss_type router_bias_update_speed seq_aux
    """,
    "how kernels run": """
        attn_implementation cache_implementation ep_size expert_parallel_size flash_attn
        fused_add_norm gradient_checkpointing gradient_checkpointing_kwargs logits_to_keep
        mamba_chunk_size masked_softmax_fusion skip_bias_add skip_bias_add_qkv time_step_limit
        tp_plan use_bfloat16 world_size
    """,
    "other modalities, which are not sized": """
        sample_rate
    """,
    "other": """
        add_cross_attention attn_logit_softcapping_note cross_attention_hidden_size embd_layer_norm
        full_attn_mod gen_num_layers interpolate_factor is_decoder is_encoder_decoder
        keys_to_ignore_at_inference offset_alibi output_expert_logits prune_heads pruned_heads
        rotary_scaling_note scale_attn_by_inverse_layer_idx scale_base scale_fmt tie_encoder_decoder
        tie_weights_ use_return_dict validate_runner_input
    """,
}

_KEYS = frozenset(key for keys in _BY_REASON.values() for key in keys.split())
"""Keys that change nothing, and whose names `HARMLESS_NAMES` does not match."""

HARMLESS_NAMES = re.compile(
    "|".join(
        [
            # Token ids. They change no figure, because the size of an embedding table comes from vocab_size.
            r"_tokens?_ids?$|_token_index$|^(unk|mask)_index$|^vocabulary_map$|^languages$|_language$",
            r"^(image|slice|im|frame)_(start|end|patch|newline)_id$|^newline_id$|^model_type$",
            # Regularisation. It is disabled when a model is sized, served or timed.
            r"dropout|_pdrop$|layerdrop|^drop_|^label_smoothing$",
            # Initialisation of weights.
            r"initializer|init_std|init_scale|_init$|^init_device$|init_variance|^rescale_prenorm_residual$",
            r"^time_step_(min|max|floor|scale|init_scheme)$|^linear_(a_log|dt)_|^learnable_sink_init$|_std_dev$",
            # Options that choose the outputs of a forward pass, and settings of generation.
            r"^use_cache$|^return_|^output_(attentions|hidden_states|router_logits|past)$|^num_logits_to_keep$|^id2label$",
            r"^label2id$|^forced_|^decoder_start|suppress_tokens$|^no_repeat|^encoder_no_repeat|^num_beams|^(start|end)_n_top$",
            # Training objectives.
            r"aux_loss|_loss_|_loss$|loss_coef|loss_weight|^z_loss|jitter|^mask_(time|feature)|^apply_spec_augment$",
            # Classification heads and the pooling before them.
            r"^classifier_(dropout|pooling|proj)|^summary_|^num_labels$|^problem_type$|^pooling$",
            # How an engine serves the model.
            r"(^|_)(batch_size|prefill)(_|$)|(tensor|pipeline|expert|context)_parallel|^context_window_size$|sink_size$",
            # Options that choose between kernels with the same result.
            r"^use_(mamba_kernels|mambapy|falcon_mambapy|mem_eff_path|associative_scan|flash)|^slow_but_exact$",
            r"^pretraining_tp$|^model_parallel_size$|^(chunkwise|sequence|step)_kernel$|kernel_dtype$|^max_inference_chunksize$|^reorder_and_upcast",
            r"_in_fp32$|float32$|^(torch_)?dtype$|^chunk_size_(feed_forward|lm_head)$",
        ]
    )
)
"""Matches the keys that change neither a figure nor a result, by their names."""

OTHER_MODALITIES = re.compile(
    r"vision|visual|image|video|audio|pixel|patch_size|projector(?!s)|aligner|^insert_layer|resampler|perceiver|qformer"
    r"|^vq_|speech|(^|_)(mm|img)_|embd_layer$|spatial|deepstack|downsample|multimodal|^vit_|_feature_(layer|select)|protein|^freeze_"
    r"|^dit_config$"
)
"""Matches the keys of the parts of a composite for vision, audio and other modalities."""

_SIZE = re.compile(
    # a width, or a number of parts
    r"(^|_)(size|sizes|dim|dims|dff|width|widths|\w*rank|channels|features|vocab|multiplier|ratio|layers|heads|experts"
    r"|blocks|streams|modules)(_|$)|(^|_)(n|num|d)_|_num$"
)
"""Matches a key whose value can be a dimension of a weight, or a number of weights."""

_NO_SIZE = re.compile(
    # amounts of tokens, of memory and of work; limits; numbers of labels and of outputs
    r"(^|_)(batch|chunk|window|prefill|context|cache|sink|page|tile|token|tokens|max|min|world|parallel|tp|ep|pp|topk|top_k"
    r"|per_tok|per_token|labels|beams|return|iters|steps|group_size|block_size|quant|version)(_|$)"
)
"""Matches the keys that `_SIZE` matches although no weight depends on their values."""

_NUMBER_FORMATS = re.compile(r"(torch\.)?(b?float|fp|bf|int|u?int|half|double)(\d+)?(_?e\dm\d\w*)?$")
"""Matches the names of number formats (bfloat16, float8_e4m3fn, fp32)."""


def is_harmless(key: str, value: Any, *, of_tower: bool = False) -> bool:
    """Return whether a key changes neither a figure nor the result of its model.

    A value that is a number format changes only how the model computes. Keys of other modalities change only their
    towers. `of_tower`: the model is such a tower.
    """
    if key in _KEYS or key.startswith("_") or HARMLESS_NAMES.search(key):
        return True
    if not of_tower and OTHER_MODALITIES.search(key):
        return True
    return isinstance(value, str) and _NUMBER_FORMATS.match(value) is not None


def is_unused_window(key: str, value: Any, values: dict[str, Any]) -> bool:
    """Return whether a key states a sliding window that the model does not use, or states again.

    `values`: all keys of the config. Its `use_sliding_window` can switch all windows off.
    """
    if re.search(r"(^|_)window(_|$)", key) is None or type(value) is not int:
        return False
    return value < 0 or values.get("use_sliding_window") is False or value == values.get("sliding_window")


def names_a_size(key: str, value: Any) -> bool:
    """Return whether a key can state a dimension of a weight or a number of weights.

    The value must then be a whole number above 0, a list of such numbers, or an object with such a key.
    """
    if is_harmless(key, value):
        return False
    if isinstance(value, dict):
        return any(names_a_size(str(inner), stated) for inner, stated in value.items())
    numbers = value if isinstance(value, list) else [value]
    sizes = all(type(number) is int and number > 0 for number in numbers)
    return bool(numbers) and sizes and _SIZE.search(key) is not None and not _NO_SIZE.search(key)
