"""Importer for Qwen4-Exp by Alibaba."""

from __future__ import annotations

import math

from llmbench.spec.ffn import Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, matrix, moe, norm, vector
from llmbench.spec.huggingface.families.qwen import delta_net
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Mixer, QKNorm
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec

_MOST_TABLES = 512
"""The largest number of n-gram tables of a model. Each has a prime number of rows, which takes time to find."""


@family("qwen4_exp_text")
def qwen4_exp(c: Config) -> ModelSpec:
    """Qwen4-Exp has Qwen3-Next's mixers and experts, and several residual streams that narrow matrices mix.

    Full attention has an indexer, which selects blocks of keys. Some layers also read a table of n-grams.
    """
    count, streams = num_layers(c), c.size("hc_count")
    every = c.size("full_attention_interval", 4)
    kinds = layer_types(
        c, ["linear_attention" if (index + 1) % every else "indexed_attention" for index in range(count)]
    )
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(), output_gate="elementwise")
    delta = delta_net(c)
    ffn = moe(
        c,
        router=Router(normalize=c.flag("norm_topk_prob", True)),
        shared=SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"), gate=True),
    )
    c.unbuildable("residual streams that narrow matrices mix are unsupported")
    c.ignore("output_gate_type seed split_ngram_parts number_of_conv_states")
    if any(kind != "linear_attention" for kind in kinds):
        budget = c.size("indexer_budget")
        c.doubt(f"llmbench counts attention to all keys instead of the indexer's scores and its {budget} selected keys")
        c.ignore("indexer_compress_ratio")
    c.ignore("ple_embed_dim ple_conv_kernel_size ngram_size heads_per_ngram ngram_vocab_size_base")
    c.ignore("make_ngram_vocab_size_divisible_by")
    with_ngrams = [index for index in c.entries("ple_layer_ids") or () if type(index) is int]
    layers: list[tuple[str, Layer]] = []
    for index, kind in enumerate(kinds):
        attends = kind != "linear_attention"
        mixer: Mixer = full if attends else delta
        name, extra = "linear", [*_residual(c, "mixer", streams), *_residual(c, "ffn", streams)]
        if attends:
            name, extra = "attention", [*extra, *_indexer(c)]
        if index + 1 in with_ngrams:
            name, extra = f"{name}_ngrams", [*extra, *_ngrams(c, with_ngrams.index(index + 1), streams)]
        layers.append((name, block(mixer, ffn, "none", extra=tuple(extra))))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=full.head_dim, partial=0.25),
        final_norm=False,
        extra=tuple(_residual(c, "head", streams, adds=False)),
    )


def _residual(c: Config, name: str, streams: int, *, adds: bool = True) -> list[ExtraWeight]:
    """Return the weights of one place where the streams are mixed: a norm, two narrow matrices, and a matrix that adds.

    - name: name of the place.
    - adds: the output of a sublayer is added to the streams here.
    """
    hidden, narrow = c.size("hidden_size"), c.size("hc_lowrank")
    weights = [
        vector(f"{name}_streams.norm", "norms", streams * hidden),
        matrix(f"{name}_streams.down", "other", narrow, streams * hidden),
        matrix(f"{name}_streams.up", "other", streams * hidden, narrow),
    ]
    return [*weights, matrix(f"{name}_streams.add", "other", streams, streams * hidden)] if adds else weights


def _indexer(c: Config) -> list[ExtraWeight]:
    """Return the weights of the indexer of one layer: a projection to its queries and keys, and their norms."""
    heads, width = c.size("indexer_n_heads") + c.size("indexer_kv_heads"), c.size("indexer_head_dim")
    return [
        matrix("attention.indexer.qk_proj", "attention_extra", heads * width, c.size("hidden_size")),
        vector("attention.indexer.norms", "attention_extra", 2, width),
    ]


def _ngrams(c: Config, place: int, streams: int) -> list[ExtraWeight]:
    """Return the weights with which a layer reads n-grams: a table, projections, norms and a convolution.

    `place`: the number of layers before this one that read n-grams. Each table has a prime number of rows of its own.
    """
    hidden, width = c.size("hidden_size"), c.size("ple_embed_dim", c.size("hidden_size"))
    longest = c.size("ngram_size")
    tables = (longest - 1) * c.size("heads_per_ngram")
    if not 1 <= tables * (place + 1) <= _MOST_TABLES:
        raise c.error(
            "heads_per_ngram", f"gives {tables * (place + 1)} tables of n-grams; 1 to {_MOST_TABLES} are supported"
        )
    rows = sum(_primes_from(c.size("ngram_vocab_size_base"), tables * (place + 1))[-tables:])
    multiple = c.size("make_ngram_vocab_size_divisible_by")
    rows = math.ceil(rows / multiple) * multiple
    table = ExtraWeight(name="ngram_embedding", shape=(rows, width // tables), role="table", component="embedding")
    constants = ExtraWeight(name="ngram_constants", shape=(longest + 2 * tables,), role="buffer")
    return [
        table,
        constants,
        matrix("ngram_key_proj", "other", streams * hidden, width),
        matrix("ngram_value_proj", "other", hidden, width),
        vector("ngram_norms", "norms", 3, streams * hidden),
        vector("ngram_conv", "other", streams * hidden, c.size("ple_conv_kernel_size")),
    ]


def _primes_from(least: int, count: int) -> list[int]:
    """Return the `count` smallest prime numbers that are at least `least`."""
    primes: list[int] = []
    number = max(least, 2)
    while len(primes) < count:
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            primes.append(number)
        number += 1
    return primes
