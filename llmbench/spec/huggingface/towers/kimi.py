"""The vision tower (MoonViT) and the projector of Kimi-VL and Kimi K2.5."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import conv, layer_norm, mlp, sides, transformer_layer


@tower("kimi_k25_vision", "moonvit")
def moonvit(c: Config) -> int:
    """MoonViT has a table of positions for rows and columns. The positions in time are computed."""
    width = c.size("hidden_size")
    embedding = conv(3, width, *sides(c, "patch_size")) + c.size("pos_emb_height") * c.size("pos_emb_width") * width
    layers = c.size("num_hidden_layers") * transformer_layer(width, c.size("intermediate_size"))
    c.ignore("pos_emb_time merge_kernel_size merge_type video_attn_type pos_emb_type text_hidden_size mm_hidden_size")
    c.ignore("mm_projector_type projector_ln_eps projector_hidden_act")
    return embedding + layers + layer_norm(width)


@composite("kimi_vl", "kimi_k25")
def kimi(w: Whole) -> dict[str, int | None]:
    """The projector joins neighbouring patches after a norm. The published files have other names of keys."""
    vision = w.part("vision_config")
    assert vision is not None
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        vision.rename(**{f"vt_{key}": key})
    for key in ("pos_emb_height", "pos_emb_width", "pos_emb_time"):
        vision.rename(**{f"init_{key}": key})
    width = vision.size("hidden_size")
    height, across = sides(vision, "merge_kernel_size")
    joined = width * height * across
    projector = layer_norm(w.config.size("projection_hidden_size", width)) + mlp(joined, joined, w.text_width)
    name = "multi_modal_projector" if w.kind == "kimi_vl" else "mm_projector"
    return {"vision_tower": w.tower("vision_config"), name: projector}
