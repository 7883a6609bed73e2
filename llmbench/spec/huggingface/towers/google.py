"""Towers of Gemma-3, Gemma-3n, Gemma-4 and PaliGemma."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import attention, conv, gated_mlp, layer_norm, linear, mlp, sides, two


@composite("t5gemma2")
def t5gemma2(w: Whole) -> dict[str, int | None]:
    """The encoder of T5Gemma 2 reads images as Gemma-3 does."""
    encoder = {"model_type": "t5gemma2_encoder", **w.config.table("encoder")}
    inside = Whole(encoder, w.spec)
    parts = {f"encoder.{name}": parameters for name, parameters in gemma3(inside).items()}
    w.doubts += inside.doubts
    return parts


@composite("gemma3", "shieldgemma2", "t5gemma2_encoder")
def gemma3(w: Whole) -> dict[str, int | None]:
    """Gemma-3 has SigLIP, and one matrix after a norm."""
    width = w.size("vision_config", "hidden_size")
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": width + width * w.text_width}


@composite("paligemma")
def paligemma(w: Whole) -> dict[str, int | None]:
    """PaliGemma has SigLIP and one matrix."""
    projector = linear(w.size("vision_config", "hidden_size"), w.config.size("projection_dim", w.text_width))
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@tower("gemma4_vision")
def gemma4_vision(c: Config) -> int:
    """Gemma-4's vision tower has two tables of positions, one for rows and one for columns, and four norms a layer."""
    width, head = c.size("hidden_size"), c.size("head_dim")
    heads, keys = c.size("num_attention_heads") * head, c.size("num_key_value_heads") * head
    height, across = sides(c, "patch_size")
    embedding = 3 * height * across * width + 2 * c.size("position_embedding_size") * width
    layer = attention(width, inner=heads, kv=keys, qkv_bias=False, output_bias=False) + 2 * head
    layer += gated_mlp(width, c.size("intermediate_size")) + 4 * width + _clips(c, 7)
    c.ignore("pooling_kernel_size", "max_position_embeddings", "attention_bias", "default_output_length")
    return embedding + c.size("num_hidden_layers") * layer + (2 * width if c.flag("standardize") else 0)


def _clips(c: Config, matrices: int) -> int:
    """Return the stored limits of the inputs and outputs of some matrices."""
    return 4 * matrices if c.flag("use_clipped_linears") else 0


@tower("gemma4_audio")
def gemma4_audio(c: Config) -> int:
    """Gemma-4's audio tower is a conformer: two feed-forwards, attention and a convolution in each layer."""
    width = c.size("hidden_size")
    first, second = (channels.size("entry") for channels in two(c, "subsampling_conv_channels"))
    front = conv(1, first, 3, 3, bias=False) + conv(first, second, 3, 3, bias=False) + first + second
    front += first // 4 * second * width
    feed_forward = mlp(width, 4 * width, bias=False) + 2 * width + _clips(c, 2)
    attends = 5 * width**2 + width // c.size("num_attention_heads") + _clips(c, 4)
    light = 3 * width**2 + width * c.size("conv_kernel_size") + 2 * width + _clips(c, 2)
    layer = 2 * feed_forward + attends + light + 3 * width
    c.ignore("attention_context_left attention_context_right attention_chunk_size attention_logit_cap residual_weight")
    c.ignore("gradient_clipping attention_invalid_logits_value")
    return front + c.size("num_hidden_layers") * layer + linear(width, c.size("output_proj_dims"))


@composite("gemma4")
def gemma4(w: Whole) -> dict[str, int | None]:
    """Gemma-4 projects the output of each tower with one matrix. The smaller models have an audio tower."""
    parts: dict[str, int | None] = {}
    if w.part("vision_config") is not None:
        parts["vision_tower"] = w.tower("vision_config")
        parts["embed_vision"] = w.size("vision_config", "hidden_size") * w.text_width
    if w.part("audio_config") is not None:
        parts["audio_tower"] = w.tower("audio_config")
        parts["embed_audio"] = w.size("audio_config", "output_proj_dims") * w.text_width
    return parts


@composite("gemma4_unified")
def gemma4_unified(w: Whole) -> dict[str, int | None]:
    """Gemma-4's unified models have no towers: a matrix projects patches of the image and frames of the sound."""
    parts: dict[str, int | None] = {}
    vision = w.part("vision_config")
    if vision is not None:
        width = vision.size("mm_embed_dim")
        patch = 3 * (vision.size("patch_size") * vision.size("pooling_kernel_size")) ** 2
        embedding = layer_norm(patch) + linear(patch, width) + 2 * layer_norm(width)
        positions = 2 * vision.size("mm_posemb_size") * width
        parts["embed_vision"] = embedding + positions + vision.size("output_proj_dims") * w.text_width
    if w.part("audio_config") is not None:
        parts["embed_audio"] = w.size("audio_config", "audio_embed_dim") * w.text_width
    return parts


@tower("gemma3n_audio")
def gemma3n_audio(c: Config) -> int:
    """Gemma-3n's audio tower is a conformer behind two convolutions of the spectrogram."""
    width, bins = c.size("hidden_size"), c.size("input_feat_size")
    keys = ("sscp_conv_channel_size", "sscp_conv_kernel_size", "sscp_conv_stride_size")
    front, inputs = 0, 1
    for channels, kernel, stride in zip(*(two(c, key) for key in keys), strict=True):
        outputs, (high, wide), (_, step) = channels.size("entry"), sides(kernel, "entry"), sides(stride, "entry")
        front += conv(inputs, outputs, high, wide, bias=False) + outputs
        bins, inputs = (bins + 2 - wide) // step + 1, outputs
    front += inputs * bins * width
    feed_forward = mlp(width, 4 * width, bias=False) + 2 * width
    attends = 5 * width**2 + width // c.size("conf_num_attention_heads") + 2 * width
    light = 3 * width**2 + width * c.size("conf_conv_kernel_size") + 2 * width
    layer = 2 * feed_forward + attends + light + width
    c.ignore("conf_attention_context_left conf_attention_context_right conf_attention_chunk_size")
    c.ignore("conf_attention_logit_cap conf_reduction_factor conf_residual_weight gradient_clipping vocab_offset")
    return front + c.size("conf_num_hidden_layers") * layer


@composite("gemma3n")
def gemma3n(w: Whole) -> dict[str, int | None]:
    """Gemma-3n's vision tower is MobileNet-V5 of the library timm, which no formula here describes."""

    def embedder(key: str) -> int:
        width = w.size(key, "hidden_size")
        return w.size(key, "vocab_size") * width + 2 * width + width * w.text_width

    return {
        "vision_tower": w.tower("vision_config"),
        "embed_vision": embedder("vision_config"),
        "audio_tower": w.tower("audio_config"),
        "embed_audio": embedder("audio_config"),
    }
