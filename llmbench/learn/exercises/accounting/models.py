"""The models of the questions, with other sizes for other seeds."""

from __future__ import annotations

from llmbench.learn.exercises.question import Draw, Model


def gpt(draw: Draw) -> Model:
    """Return GPT-2 XL, or a model of its family with another depth, width and vocabulary."""
    layers = draw.pick(48, 12, 20, 24, 30, 36, 40)
    heads = draw.pick(25, 12, 14, 16, 18, 20, 24)
    vocab = draw.pick(50257, 32000, 40000, 50304, 64000)
    if (layers, heads, vocab) == (48, 25, 50257):
        return Model("gpt2-xl", {})
    fields = {"num_hidden_layers": layers, "hidden_size": 64 * heads, "num_attention_heads": heads}
    fields |= {"num_key_value_heads": heads, "intermediate_size": 256 * heads, "vocab_size": vocab}
    return Model("gpt2-xl", fields)


def gpt_text(model: Model) -> str:
    """Return a sentence with the sizes of such a model."""
    spec = model.spec
    return (
        f"A GPT-2 model has {spec.num_hidden_layers} layers, hidden size {spec.hidden_size:,}, "
        f"{spec.hidden_size // 64} heads of width 64, a feed-forward of width {4 * spec.hidden_size:,}, "
        f"{spec.vocab_size:,} tokens in its vocabulary and 1,024 learned positions. All matrices of a layer and all "
        "LayerNorms have biases, and a LayerNorm follows the last layer. The head shares the matrix of the embedding "
        "and has no bias."
    )


def llama(draw: Draw) -> Model:
    """Return Llama 3 8B, or a model of its family with another depth and other KV heads."""
    layers, kv_heads = draw.pick(32, 24, 28, 40, 48), draw.pick(8, 2, 4, 16)
    if (layers, kv_heads) == (32, 8):
        return Model("llama3-8b", {})
    return Model("llama3-8b", {"num_hidden_layers": layers, "num_key_value_heads": kv_heads})


def llama_text(model: Model) -> str:
    """Return a sentence with the sizes of such a model."""
    spec = model.spec
    kv_heads = model.changes.get("num_key_value_heads", 8)
    return (
        f"A Llama model has {spec.num_hidden_layers} layers, hidden size {spec.hidden_size:,}, 32 query heads and "
        f"{kv_heads} KV heads of width 128, a SwiGLU of width 14,336 and {spec.vocab_size:,} tokens in its vocabulary. "
        "There are no biases. Embedding and head are two matrices."
    )
