"""Vision towers and query transformers of BLIP-2 and InstructBLIP."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import attention, grid, layer_norm, linear, mlp, patches


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
