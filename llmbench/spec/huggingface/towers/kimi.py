"""The vision tower (MoonViT) and the projector of Kimi K2.5."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import conv, layer_norm, mlp, sides, transformer_layer


@tower("kimi_k25_vision")
def moonvit(c: Config) -> int:
    """MoonViT has a table of positions for rows and columns. The positions in time are computed."""
    width = c.size("hidden_size")
    embedding = conv(3, width, *sides(c, "patch_size")) + c.size("pos_emb_height") * c.size("pos_emb_width") * width
    layers = c.size("num_hidden_layers") * transformer_layer(width, c.size("intermediate_size"))
    c.ignore("pos_emb_time", "merge_kernel_size")
    return embedding + layers + layer_norm(width)


@composite("kimi_k25")
def kimi(w: Whole) -> dict[str, int | None]:
    """The projector joins neighbouring patches after a norm."""
    vision = w.part("vision_config")
    assert vision is not None
    height, across = sides(vision, "merge_kernel_size")
    joined = vision.size("hidden_size") * height * across
    projector = layer_norm(w.config.size("projection_hidden_size")) + mlp(joined, joined, w.text_width)
    return {"vision_tower": w.tower("vision_config"), "mm_projector": projector}
