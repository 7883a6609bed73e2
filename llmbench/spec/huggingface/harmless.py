"""Keys of Hugging Face configs that change neither a figure nor the shape of a weight, grouped by their purpose."""

from __future__ import annotations

_BY_REASON = {
    "origin and loading": """
        _commit_hash _name_or_path architecture architectures auto_map compression_config dtype
        finetuning_task is_llama_config llama_config model_type prefix quantization quantization_config
        router_dtype task_specific_params tokenizer_class torch_dtype torchscript transformers.js_config
        transformers_version unsloth_fixed unsloth_version
    """,
    "tokens and generation": """
        bad_words_ids begin_suppress_tokens boa_token_id boi_token_id boi_token_index bos_token_id
        cls_token_id decoder_start_token_id diversity_penalty do_sample early_stopping
        encoder_no_repeat_ngram_size eoa_token_id eoa_token_index eod_token_id eoi_token_id eoi_token_index
        eos_token_id exponential_decay_length_penalty force_bos_token_to_be_generated forced_bos_token_id
        forced_eos_token_id im_end_token_id im_start_token_id length_penalty mask_token_id max_length
        max_seq_len max_sequence_length min_length model_max_length moe_token_dropout n_ctx
        n_positions_train no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
        pad_key_length pad_token_id padding_idx padding_side predict_special_tokens remove_invalid_values
        repetition_penalty return_dict_in_generate router_ignore_padding_tokens sep_token_id seq_length
        suppress_tokens temperature top_k top_p typical_p unk_token_id
    """,
    "initialisation": """
        embedding_initializer_range init_method init_std initializer_cutoff_factor initializer_factor
        initializer_range rescale_every rescale_prenorm_residual time_step_init_scheme use_mup
        w_init_variance_scale
    """,
    "dropout and regularisation": """
        activation_dropout attention_dropout attention_probs_dropout_prob attn_dropout attn_pdrop
        bias_dropout_fusion classif_dropout classifier_dropout classifier_dropout_prob decoder_layerdrop
        dropout dropout_rate emb_pdrop embd_pdrop embed_dropout embedding_dropout encoder_layerdrop
        ffn_dropout hidden_dropout hidden_dropout_prob input_jitter_noise layerdrop mlp_dropout
        moe_jitter_eps neftune_noise_alpha qa_dropout resid_dropout resid_pdrop residual_dropout
        router_dropout router_jitter_eps router_jitter_noise seq_classif_dropout summary_first_dropout
    """,
    "norm epsilons (read by `norm`)": """
        layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon norm_topk_eps rms_norm_eps
    """,
    "losses and router training": """
        aux_loss_alpha balance_loss_weight load_balance_coeff loss_type moe_aux_loss_coeff moe_loss_weight
        output_router_logits router_aux_loss_coef router_bias_update_speed router_z_loss_coef seq_aux
        tf_legacy_loss use_aux_loss z_loss_weight
    """,
    "how kernels run": """
        _attn_implementation attention_softmax_in_fp32 attn_implementation cache_implementation
        chunk_size_feed_forward ep_size expert_parallel_size flash_attn fused_add_norm
        gradient_checkpointing gradient_checkpointing_kwargs logits_to_keep mamba_chunk_size
        masked_softmax_fusion num_logits_to_keep pretraining_tp reorder_and_upcast_attn residual_in_fp32
        scale_attention_softmax_in_fp32 skip_bias_add skip_bias_add_qkv slow_but_exact time_step_floor
        time_step_limit time_step_max time_step_min time_step_scale tp_plan use_bfloat16 use_cache
        use_falcon_mambapy use_flash_attention use_flash_attn use_mamba_kernels use_mambapy world_size
    """,
    "other modalities, which are not sized": """
        audio_config audio_token_id deepstack_visual_indexes freeze_filter image_seq_length image_token_id
        image_token_index mm_tokens_per_image multimodal_projector_bias num_image_tokens perceiver_config
        pixel_shuffle_factor projector_hidden_act sample_rate spatial_merge_size use_audio_in_video
        use_resampler video_token_id video_token_index vision_config vision_end_token_id
        vision_feature_layer vision_feature_select_strategy vision_start_token_id vision_token_id
    """,
    "other": """
        add_cross_attention attn_logit_softcapping_note cross_attention_hidden_size embd_layer_norm
        full_attn_mod gen_num_layers id2label interpolate_factor is_decoder is_encoder_decoder
        keys_to_ignore_at_inference label2id num_labels offset_alibi output_attentions output_expert_logits
        output_hidden_states output_past problem_type prune_heads pruned_heads return_dict
        rotary_scaling_note scale_attn_by_inverse_layer_idx scale_base scale_fmt summary_activation
        summary_proj_to_labels summary_type summary_use_proj tie_encoder_decoder tie_weights_
        use_return_dict validate_runner_input
    """,
}

HARMLESS_KEYS = frozenset(key for keys in _BY_REASON.values() for key in keys.split())
"""Config keys that never make a spec approximate, regardless of their value."""
