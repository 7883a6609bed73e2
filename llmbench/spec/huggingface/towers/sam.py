"""Vision towers of SAM: GOT-OCR 2, PP-Chart2Table, and the second tower of DeepSeek-VL."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import (
    attention,
    conv,
    grid,
    layer_norm,
    linear,
    mlp,
    patches,
    sides,
)


def neck(c: Config) -> int:
    """Two convolutions, each with a norm."""
    outputs = c.size("output_channels")
    first = conv(c.size("hidden_size"), outputs, 1, 1, bias=False)
    return first + conv(outputs, outputs, 3, 3, bias=False) + 2 * layer_norm(outputs)


@tower("sam_vision_model", "got_ocr2_vision", "pp_chart2table_vision")
def sam(c: Config) -> int:
    """Most layers of SAM attend within windows. Each layer has tables of relative positions for rows and columns."""
    width, inner = c.size("hidden_size"), c.get("mlp_dim")
    inner = c.size("mlp_dim") if inner is not None else int(width * c.number("mlp_ratio", 4.0))
    side, window, head = sides(c, "image_size")[0] // sides(c, "patch_size")[0], c.size("window_size"), 0
    if c.flag("use_rel_pos", True):
        head = width // c.size("num_attention_heads")
    layers, everywhere = c.size("num_hidden_layers"), len(c.entries("global_attn_indexes") or [])
    layer = attention(width, qkv_bias=c.flag("qkv_bias", True)) + mlp(width, inner) + 2 * layer_norm(width)
    tables = 2 * head * (everywhere * (2 * side - 1) + (layers - everywhere) * (2 * window - 1))
    embedding = patches(c) + (grid(c) * width if c.flag("use_abs_pos", True) else 0)
    c.ignore("mlp_ratio num_pos_feats scale")
    return embedding + layers * layer + tables + neck(c)


@composite("got_ocr2", "pp_chart2table")
def got_ocr2(w: Whole) -> dict[str, int | None]:
    """GOT-OCR 2 joins patches with two convolutions."""
    channels, text = w.size("vision_config", "output_channels"), w.text_width
    projector = conv(channels, 2 * channels, 3, 3, bias=False) + conv(2 * channels, text, 3, 3, bias=False)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector + linear(text, text)}


@composite("deepseek_vl_hybrid")
def deepseek_vl_hybrid(w: Whole) -> dict[str, int | None]:
    """The larger DeepSeek-VL has SigLIP for small images and SAM for large images."""
    detail = w.part("high_res_vision_config")
    assert detail is not None
    channels, text = detail.size("output_channels"), w.text_width
    aligner = linear(w.size("vision_config", "hidden_size"), text // 2) + linear(4 * channels, text // 2)
    return {
        "high_res_vision_model": w.tower("high_res_vision_config"),
        "high_res_vision_neck": neck(detail),
        "high_res_vision_proj": conv(channels, 2 * channels, 3, 3, bias=False)
        + conv(2 * channels, 4 * channels, 3, 3, bias=False),
        "high_res_vision_alpha": 1,
        "vision_model": w.tower("vision_config"),
        "aligner": aligner + linear(text, text),
    }
