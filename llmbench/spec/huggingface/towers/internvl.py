"""InternVL's vision tower (InternViT) and projector."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import attention, grid, layer_norm, linear, mlp, patches


@tower("internvl_vision", "qianfan_ocr_vision")
def internvit(c: Config) -> int:
    """InternViT has a class token. A trained factor per channel stands on the output of each sublayer."""
    width = c.size("hidden_size")
    norm = width if c.text("norm_type", "layer_norm") == "rms_norm" else layer_norm(width)
    layer = attention(width, qkv_bias=c.flag("attention_bias")) + mlp(width, c.size("intermediate_size"))
    layer += 2 * norm + 2 * width + (2 * width if c.flag("use_qk_norm") else 0)
    embedding = patches(c) + width + (width if c.flag("use_mask_token") else 0)
    if c.flag("use_absolute_position_embeddings", True):
        embedding += (grid(c) + 1) * width
    after = 0 if c.flag("use_mean_pooling", True) else layer_norm(width)
    return embedding + c.size("num_hidden_layers") * layer + after


@tower("intern_vit_6b")
def internvit_chat(c: Config) -> int:
    """The published files of InternVL have other names of keys, and no norm after the last layer."""
    c.rename(qkv_bias="attention_bias", qk_normalization="use_qk_norm")
    c.ignore("layers use_flash_attn num_channels qk_normalization qkv_bias")
    c.put("num_channels", 3)
    return internvit(c)


@composite("internvl_chat")
def internvl_chat(w: Whole) -> dict[str, int | None]:
    """The published files have other names of parts."""
    tower_of, projector = internvl(w).values()
    return {"vision_model": tower_of, "mlp1": projector}


@composite("internvl", "qianfan_ocr")
def internvl(w: Whole) -> dict[str, int | None]:
    """InternVL joins neighbouring patches, and has a norm before the projector."""
    ratio = w.config.number("downsample_ratio", 0.5)
    if not 1e-3 <= ratio <= 1:
        raise w.config.error("downsample_ratio", f"must be from 0.001 to 1, not {ratio:g}")
    inputs = w.size("vision_config", "hidden_size") * int(1 / ratio) ** 2
    projector = layer_norm(inputs) + linear(inputs, w.text_width) + linear(w.text_width, w.text_width)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}
