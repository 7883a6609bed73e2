"""Vision towers and query transformers of BLIP-2 and InstructBLIP, and the audio tower of Granite Speech."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import attention, conv, grid, layer_norm, linear, mlp, patches


@tower("blip_2_vision_model", "instructblip_vision_model", "instructblipvideo_vision_model")
def blip_vision(c: Config) -> int:
    """BLIP-2's tower has a class token, and one bias for queries, keys and values."""
    width = c.size("hidden_size")
    c.put("num_channels", 3)
    layer = attention(width, qkv_bias=c.flag("qkv_bias", True)) + mlp(width, c.size("intermediate_size"))
    layers = c.size("num_hidden_layers") * (layer + 2 * layer_norm(width))
    return patches(c) + width + (grid(c) + 1) * width + layers + layer_norm(width)


def query_transformer(c: Config, *, reads_text: bool) -> int:
    """BERT's layers. Every second one, by default, also attends to the features of the image.

    reads_text: the layers have a second feed-forward, for the text.
    """
    width, source, depth = c.size("hidden_size"), c.size("encoder_hidden_size"), c.size("num_hidden_layers")
    layer = attention(width) + mlp(width, c.size("intermediate_size")) * (2 if reads_text else 1)
    layer += (3 if reads_text else 2) * layer_norm(width)
    crossing = 2 * linear(width, width) + 2 * linear(source, width) + layer_norm(width)
    tables = (c.size("vocab_size") + c.size("max_position_embeddings")) * width if reads_text else 0
    return tables + layer_norm(width) + depth * layer + -(-depth // c.size("cross_attention_frequency")) * crossing


@composite("blip-2", "instructblip", "instructblipvideo")
def blip2(w: Whole) -> dict[str, int | None]:
    """Trained queries read the image through the query transformer. In InstructBLIP, it also reads the instruction."""
    queries = w.part("qformer_config")
    assert queries is not None
    width = queries.size("hidden_size")
    reads_text = w.kind != "blip-2" or queries.flag("use_qformer_text_input")
    return {
        "vision_model": w.tower("vision_config"),
        "qformer": query_transformer(queries, reads_text=reads_text),
        "query_tokens": w.config.size("num_query_tokens", 32) * width,
        "language_projection": linear(width, w.text_width),
    }


@tower("granite_speech_encoder", "granite_speech_plus_encoder")
def granite_speech_encoder(c: Config) -> int:
    """Granite Speech's encoder is a conformer. Its batch norm stores means, variances and a counter."""
    width, count, outputs = c.size("hidden_dim"), c.size("num_heads"), c.size("output_dim")
    head = c.size("dim_head", max(1, width // count))
    heads, inner = count * head, width * c.size("conv_expansion_factor")
    feed_forward = layer_norm(width) + mlp(width, width * c.size("feedforward_mult"))
    attends = layer_norm(width) + attention(width, inner=heads, qkv_bias=False)
    attends += (2 * c.size("max_pos_emb") + 1) * head
    convolution = layer_norm(width) + linear(width, 2 * inner) + linear(inner, width)
    convolution += conv(inner, inner, c.size("conv_kernel_size"), bias=False, groups=inner) + 4 * inner + 1
    layer = 2 * feed_forward + attends + convolution + layer_norm(width)
    c.ignore("context_size", "cat_hidden_layers")
    front = linear(c.size("input_dim"), width)
    return front + c.size("num_layers") * layer + linear(width, outputs) + linear(outputs, width)


@composite("granite_speech", "granite_speech_plus")
def granite_speech(w: Whole) -> dict[str, int | None]:
    """Trained queries read a window of the sound through a query transformer."""
    queries = w.part("projector_config")
    assert queries is not None
    width = queries.size("hidden_size")
    trained = w.config.size("window_size") // w.config.size("downsample_rate") * width
    projector = trained + query_transformer(queries, reads_text=queries.flag("use_qformer_text_input"))
    return {"encoder": w.tower("encoder_config"), "projector": projector + linear(width, w.text_width)}
