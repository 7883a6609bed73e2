"""The vision tower and the resampler of ERNIE 4.5 VL."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import layer_norm, linear, mlp, patches, transformer_layer


@tower("ernie4_5_vl_moe_vision")
def ernie_vision(c: Config) -> int:
    """ERNIE's tower has RoPE, and a norm after the layers."""
    width = c.size("hidden_size")
    layers = c.size("depth") * transformer_layer(width, c.size("intermediate_size"))
    c.ignore("spatial_merge_size", "temporal_merge_size")
    return patches(c, channels="in_channels", bias=False) + layers + layer_norm(width)


@composite("ernie4_5_vl_moe")
def ernie(w: Whole) -> dict[str, int | None]:
    """The resampler joins neighbouring patches, then neighbouring images of a video."""
    joined = w.size("vision_config", "hidden_size") * w.size("vision_config", "spatial_merge_size") ** 2
    images = joined * w.size("vision_config", "temporal_merge_size")
    resampler = mlp(joined, joined) + mlp(images, joined, joined) + 2 * layer_norm(joined)
    resampler += linear(joined, w.text_width) + w.text_width
    return {"vision_tower": w.tower("vision_config"), "resampler_model": resampler}
