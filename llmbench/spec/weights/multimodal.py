"""The names of the language model's tensors in the files of a multimodal checkpoint."""

from __future__ import annotations

# fmt: off
MULTIMODAL = frozenset((
    "aria", "cohere_compass", "deepseek_vl", "deepseek_vl_hybrid", "exaone4_5", "fuyu", "gemma3", "gemma4",
    "gemma4_unified", "glm4v", "glm4v_moe", "glm_ocr", "glmasr", "got_ocr2", "granite_speech",
    "hyperclovax_vision_v2", "idefics2", "idefics3", "internvl", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llama4",
    "llava", "llava_next", "llava_next_video", "llava_onevision", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7",
    "minimax_m3_vl", "mistral3", "moss_transcribe_diarize", "ovis2", "paddleocr_vl", "pp_chart2table", "qwen2_5_vl",
    "qwen2_audio", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_asr", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
    "video_llama_3", "video_llava", "vipllava", "voxtral",
))
# fmt: on
"""The multimodal model types whose language model is read. A test, or benchmarks/model_sweep.py --multimodal, compared
the logits of text with those of transformers."""

_PREFIXES = (("language_model.", ""), ("model.language_model.", "model."), ("model.text_model.", "model."))
"""Prefixes of the language model's tensors, and what stands in their place in the files of a language model."""

_PLAIN = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
"""Names that are the same in the files of a language model."""


def text_name(name: str) -> str | None:
    """Return the name that a tensor has in the files of a language model alone.

    None: the tensor does not belong to the language model.
    """
    for prefix, plain in _PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name if name.startswith(_PLAIN) else None
