"""Pixtral's vision tower, and the composites with it: Mistral 3, Mistral Large 4, LightOnOCR."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import attention, gated_mlp, linear, mlp, patches
from llmbench.spec.huggingface.towers.llava import features


@tower("pixtral")
def pixtral(c: Config) -> int:
    """Pixtral's tower has the layers of LLaMA: RMSNorm, RoPE, gated feed-forwards, no biases."""
    width = c.size("hidden_size")
    layer = 2 * width + attention(width, qkv_bias=False, output_bias=False)
    layer += gated_mlp(width, c.size("intermediate_size"))
    c.ignore("image_size")
    return patches(c, bias=False) + width + c.size("num_hidden_layers") * layer


@composite("mistral3", "mistral_large4", "lighton_ocr")
def mistral3(w: Whole) -> dict[str, int | None]:
    """Mistral 3 joins neighbouring patches with a matrix of its own, before LLaVA's projector."""
    width = w.size("vision_config", "hidden_size")
    merger = width + linear(width * w.config.size("spatial_merge_size") ** 2, width, bias=False)
    if w.kind == "lighton_ocr":
        projector = merger + mlp(width, w.text_width, w.text_width, bias=False)
        return {"vision_encoder": w.tower("vision_config"), "vision_projection": projector}
    bias = w.config.flag("multimodal_projector_bias")
    projector = merger + mlp(features(w), w.text_width, w.text_width, bias=bias)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}
