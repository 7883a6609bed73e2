"""Claims about the number of parameters, and rules of thumb for it."""

from __future__ import annotations

from functools import partial

from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.textbook.claim import Claim, Figure
from llmbench.textbook.models import gpt2, less, memory_bytes, parameters, style

__all__ = ["CLAIMS"]

GPT2 = "GPT-2 (Radford et al., 2019)"
LLAMA2 = "LLaMA 2, arXiv 2307.09288"
RULE = "the rule of thumb for a dense GPT block, arXiv 2001.08361"


def rule(model: str) -> int:
    """Return 12·L·d² for a bundled model."""
    return count_parameters(load_bundled(model)).rule_12_l_d2


def layers(model: str) -> int:
    """Return the parameters of all layers of a bundled model: no embeddings, no head, no last norm."""
    spec = load_bundled(model)
    return sum(count_parameters(spec).layers[name] for name in spec.order)


def component(model: str, *names: str) -> float:
    """Return the share of some components in the parameters of a bundled model."""
    counts = count_parameters(load_bundled(model))
    return sum(counts.components[name] for name in names) / counts.total


def per_layer(model: str, name: str) -> int:
    """Return the parameters of one component in one layer of a bundled model."""
    spec = load_bundled(model)
    return count_parameters(spec).components[name] // spec.num_hidden_layers


def in_hidden(model: str, name: str) -> float:
    """Return the parameters of one component in one layer, as a multiple of hidden size²."""
    return per_layer(model, name) / load_bundled(model).hidden_size ** 2


def gated_width() -> float:
    """Return the parameters of SwiGLU feed-forwards that are 8/3·d wide, divided by those of GELU feed-forwards that
    are 4·d wide."""
    gated, plain = (count_parameters(spec).components["mlp"] for spec in (style("LLaMA"), style("GPT-2")))
    return gated / plain


def style_change(kv_heads: int) -> float:
    """Return how many more parameters the LLaMA-style model has than the GPT-2-style model, as a share."""
    return less(parameters(style("LLaMA", kv_heads=kv_heads)), parameters(style("GPT-2")))


def memory_ratio(model: str, other: str, batch: int) -> float:
    """Return the memory of serving 2,048 tokens with a bundled model, divided by that with another one."""
    new, old = (memory_bytes(load_bundled(name), 2048, batch=batch) for name in (model, other))
    return new / old


CLAIMS = (
    Claim(
        name="12·L·d²",
        says="a model has 12·L·d² parameters",
        claimed=1.0,
        unit="share",
        at="the rule divided by the parameters",
        source=RULE,
        figures=(
            Figure("12·L·d² / all parameters", lambda: rule("gpt2") / parameters(gpt2()), "GPT-2, all parameters"),
            Figure("12·L·d² / parameters of the layers", lambda: rule("gpt2") / layers("gpt2"), "GPT-2, its layers"),
            Figure(
                "12·L·d² / all parameters",
                lambda: rule("llama2-7b") / parameters(load_bundled("llama2-7b")),
                "LLaMA-2-7B, all parameters",
            ),
        ),
        why="The rule leaves out the embeddings, the positions and the head, which are a large part of a small model.",
        command="llmbench params gpt2",
    ),
    Claim(
        name="attention 4·d²",
        says="the attention of one layer has 4·d² parameters",
        claimed=4,
        unit="number",
        at="parameters / d²",
        source=RULE,
        figures=(
            Figure("(q + k + v + o) / d²", lambda: in_hidden("llama2-7b", "attention"), "LLaMA-2-7B, MHA"),
            Figure("(q + k + v + o) / d²", lambda: in_hidden("llama3-8b", "attention"), "LLaMA-3-8B, GQA"),
        ),
        why="Only with as many key-value heads as query heads.",
        command="llmbench params llama3-8b",
    ),
    Claim(
        name="feed-forward 8·d²",
        says="the feed-forward of one layer has 8·d² parameters",
        claimed=8,
        unit="number",
        at="parameters / d²",
        source=RULE,
        figures=(
            Figure("2·d·4d / d²", lambda: in_hidden("gpt2", "mlp"), "GPT-2"),
            Figure("3·d·f / d²", lambda: in_hidden("llama2-7b", "mlp"), "LLaMA-2-7B"),
            Figure("3·d·f / d²", lambda: in_hidden("llama3-8b", "mlp"), "LLaMA-3-8B"),
        ),
        why="LLaMA-3-8B spends the weights of its missing key-value heads on a wider feed-forward.",
        command="llmbench compare gpt2 llama2-7b llama3-8b",
    ),
    Claim(
        name="8/3 rule",
        says="SwiGLU of width 8/3·d has as many parameters as GELU of width 4·d",
        claimed=1.0,
        bound="exact",
        at="d = 384: three matrices of width 1,024, two of width 1,536",
        source="GLU variants, arXiv 2002.05202",
        figures=(Figure("3 × 8/3·d² / (2 × 4·d²)", gated_width),),
        why="Real models round the width up to a multiple of 64 or 256.",
    ),
    Claim(
        name="GPT-2 size",
        says="GPT-2 small (the textbook's GPTModel) has about 117M parameters",
        claimed=117e6,
        unit="count",
        at="12 layers, width 768, 50,257 words, 1,024 positions",
        source=GPT2,
        figures=(
            Figure("sum over the op table", lambda: parameters(gpt2()), "head tied to the embedding"),
            Figure("sum over the op table", lambda: parameters(gpt2(tied=False)), "head of its own, as in GPTModel"),
        ),
        why="The paper prints 117M, and its authors corrected it later. A head of its own adds 50,257 × 768 weights.",
        command="llmbench params gpt2 --set tie_word_embeddings=false",
    ),
    Claim(
        name="LLaMA-2-7B embedding",
        says="the embedding and the head are 2% of LLaMA-2-7B",
        claimed=0.02,
        unit="share",
        at="6,738,415,616 parameters",
        source=LLAMA2,
        figures=(
            Figure("2 × vocab × hidden / all", lambda: component("llama2-7b", "embedding", "lm_head"), "both"),
            Figure("vocab × hidden / all", lambda: component("llama2-7b", "embedding"), "the embedding alone"),
        ),
        why="The textbook counts one of the two matrices.",
        command="llmbench params llama2-7b",
    ),
    Claim(
        name="LLaMA-2-7B norm weights",
        says="the norms are 1% of LLaMA-2-7B",
        claimed=0.01,
        unit="share",
        at="6,738,415,616 parameters",
        source=LLAMA2,
        figures=(Figure("65 × hidden / all", lambda: component("llama2-7b", "norms")),),
        why="A norm is one vector, and each of the seven products of a layer is a matrix.",
        command="llmbench params llama2-7b",
    ),
    Claim(
        name="LLaMA-style size",
        says="a LLaMA-style model of 10M parameters has 6% more parameters than a GPT-2-style model",
        claimed=0.06,
        unit="change",
        at="6 layers, width 384, 65 characters",
        source="an ablation from GPT-2 to LLaMA, arXiv 2302.13971",
        figures=(
            Figure("LLaMA style / GPT-2 style − 1", lambda: style_change(6), "MHA, 6 KV heads"),
            Figure("LLaMA style / GPT-2 style − 1", lambda: style_change(2), "GQA, 2 KV heads"),
        ),
        why="RoPE has no table of positions, and a SwiGLU of equal size has no more weights. Nothing becomes larger.",
    ),
    *(
        Claim(
            name=f"{name} memory",
            says=f"{name} needs {claimed:.0%} of the memory of {other} ({a}% and {b}% in the textbook's table)",
            claimed=claimed,
            unit="share",
            at="the textbook states no setting; serving 2,048 tokens in bf16 is assumed",
            source="the textbook's comparison of 7B models",
            figures=tuple(
                Figure(
                    "weights, cache and one prefill step",
                    partial(memory_ratio, *specs, batch),
                    f"batch {batch}",
                )
                for batch in (1, 16)
            ),
            why="All four models have about 7 billion weights. They differ in the cache, which needs many sequences to"
            " matter.",
            command=f"llmbench memory {specs[0]} --phase inference --seq 2048 --batch 16",
        )
        for name, other, a, b, claimed, specs in (
            ("Falcon-7B", "BLOOM-7B1", 65, 95, round(65 / 95, 2), ("falcon-7b", "bloom-7b1")),
            ("Mistral-7B", "LLaMA-2-7B", 60, 70, round(60 / 70, 2), ("mistral-7b-v0.1", "llama2-7b")),
        )
    ),
)
"""All claims of this topic."""
