"""The row of `llmbench compare`: a model with its parameters, cache, memory and FLOPs, and the fields of the row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from llmbench.answers.about import MODEL_FIELDS, AboutModel
from llmbench.report.describe import distinct
from llmbench.report.fields import Field
from llmbench.sizing.kvcache import KVCache
from llmbench.sizing.memory import Memory
from llmbench.sizing.params import Parameters
from llmbench.sizing.weights import StoredWeights
from llmbench.spec.ffn import FFN, activation_name
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import Layer, ModelSpec


class Compared(AboutModel, kw_only=True):
    """A model with its parameters, KV cache, memory and FLOPs per token.

    `changes`: the values of `--set` that changed the model. `inference`, `training`: the memory of one GPU.
    `decode_flops_per_token` is None if the model has no decoder. `stored` and `inference` are None if the format of the
    published files is not known.
    """

    changes: tuple[str, ...]
    parameters: Parameters
    stored: StoredWeights | None
    cache: KVCache
    inference: Memory | None
    training: Memory
    prefill_flops_per_token: float
    decode_flops_per_token: float | None

    @property
    def layers(self) -> list[Layer]:
        """One layer of each kind in the decoder."""
        return list(self.spec.layers.values())

    @property
    def ffns(self) -> list[FFN]:
        """The feed-forwards of `layers`. A layer without a feed-forward adds nothing."""
        return [layer.ffn for layer in self.layers if layer.ffn is not None]


def _texts(name: str, heading: str, texts: Callable[[Compared], Iterable[str]], description: str) -> Field[Compared]:
    """Return a field whose value is a list: one text per kind of layer, without repetitions."""
    return Field(
        name,
        heading,
        value=lambda row: _once(texts(row)),
        text=lambda row: _joined(texts(row)),
        description=description,
    )


FIELDS: tuple[Field[Compared], ...] = (
    *(msgspec.structs.replace(field, heading=None) for field in MODEL_FIELDS),
    Field(
        "changes",
        "changes",
        value=lambda row: list(row.changes),
        text=lambda row: ", ".join(row.changes) or "none",
        description="values of `--set` that changed the model",
    ),
    Field(
        "parameters",
        "parameters",
        "parameters",
        lambda row: row.parameters.total,
        description="number of trained parameters",
    ),
    Field(
        "active_parameters",
        "active parameters",
        "parameters",
        lambda row: row.parameters.active,
        description="number of trained parameters that one token uses",
    ),
    Field(
        "weights_bytes",
        "weights in files",
        "gib",
        lambda row: None if row.stored is None else row.stored.total_bytes,
        description="the same figure as `stored_bytes` of `params`: bytes of the weights in files",
    ),
    Field(
        "weights_format",
        "weight format",
        value=lambda row: None if row.stored is None else row.stored.format,
        description="format of the weights, as `--weights` accepts it; null if it is not known",
    ),
    _texts(
        "positions",
        "positions",
        lambda row: (row.spec.positions_of(mixer).summary for mixer in row.spec.attentions),
        "position encodings of the attention layers",
    ),
    Field("norm", "norm", value=lambda row: _norm(row.spec), description="kind of norm"),
    _texts(
        "norm_placement",
        "norm placement",
        lambda row: (layer.placement.replace("_", " ") for layer in row.layers),
        "placement of the norms in a layer: `pre`, `post`, `output`, `sandwich`, `parallel`, …",
    ),
    Field(
        "parallel_block",
        "parallel block",
        value=lambda row: any(layer.placement.startswith("parallel") for layer in row.layers),
        description="whether the attention and the feed-forward of a layer run in parallel",
    ),
    _texts(
        "attention",
        "attention",
        lambda row: (layer.mixer.summary for layer in row.layers if layer.mixer is not None),
        "kinds of attention or recurrence, with their numbers of heads",
    ),
    Field(
        "head_dim",
        "head dim",
        value=lambda row: _numbers(mixer.key_dim for mixer in row.spec.attentions),
        text=lambda row: _joined(map(_heads, row.spec.attentions)),
        description="head dimension of queries and keys",
    ),
    Field(
        "v_head_dim",
        value=lambda row: _numbers(mixer.value_dim for mixer in row.spec.attentions),
        description="head dimension of values",
    ),
    Field(
        "window",
        "window",
        value=lambda row: _numbers(mixer.sliding_window for mixer in row.spec.attentions),
        text=lambda row: _joined(map(_window, row.spec.attentions)),
        description="size of the sliding window: number of tokens that a query can see, including the query's own "
        "token",
    ),
    Field(
        "attention_chunk_size",
        value=lambda row: _numbers(mixer.attention_chunk_size for mixer in row.spec.attentions),
        description="tokens per chunk in chunked attention, where a query sees only the keys of its own chunk",
    ),
    _texts(
        "qk_norm",
        "QK norm",
        lambda row: (mixer.qk_norm.over if mixer.qk_norm else "none" for mixer in row.spec.attentions),
        "norm of queries and keys. `head`: over each head, with weights that all heads share. `per_head`: over each "
        "head, with different weights per head. `full`: over all heads together",
    ),
    Field(
        "biases", "biases", value=lambda row: _biases(row.layers), description="names of the projections with a bias"
    ),
    _texts(
        "feed_forward",
        "feed-forward",
        lambda row: (ffn.summary for ffn in row.ffns),
        "kind and intermediate size of each feed-forward",
    ),
    _texts(
        "activation",
        "activation",
        lambda row: (activation_name(ffn.activation) for ffn in row.ffns),
        "activation function of each feed-forward",
    ),
    Field(
        "moe",
        "experts",
        value=lambda row: _once(ffn.experts_summary or "none" for ffn in row.ffns),
        text=lambda row: _joined(ffn.experts_summary for ffn in row.ffns if ffn.experts_summary is not None),
        description="mixture of experts: number of experts per token, total number of experts, and scoring function "
        "of the router",
    ),
    Field(
        "layers",
        "layers",
        "count",
        lambda row: row.spec.num_hidden_layers,
        lambda row: f"{len(row.spec.encoder.order)} + {row.spec.num_hidden_layers}" if row.spec.encoder else None,
        description="number of decoder layers, or of encoder layers if the model has no decoder",
    ),
    Field(
        "encoder_layers",
        value=lambda row: len(row.spec.encoder.order) if row.spec.encoder else None,
        description="number of encoder layers of an encoder-decoder model; null for other models",
    ),
    Field(
        "pattern",
        "pattern",
        value=lambda row: row.spec.pattern,
        description="order of the kinds of layers in the model",
    ),
    Field(
        "hidden_size",
        "hidden size",
        "count",
        lambda row: row.spec.hidden_size,
        description="width of the hidden states",
    ),
    Field("vocab_size", "vocab size", "count", lambda row: row.spec.vocab_size, description="size of the vocabulary"),
    Field(
        "tied_embeddings",
        "tied embeddings",
        value=lambda row: row.spec.tie_word_embeddings,
        description="whether the output head uses the weights of the embedding",
    ),
    Field(
        "context",
        "context",
        "count",
        lambda row: row.spec.max_position_embeddings,
        description="maximum sequence length that the model's config states, in tokens; null if it states none",
    ),
    Field(
        "kv_bytes_per_token",
        "KV cache per token",
        "kib",
        lambda row: row.cache.bytes_per_token,
        description="the same figure as `bytes_per_token` of `kvcache`",
    ),
    Field(
        "kv_bytes_per_token_beyond_windows",
        "KV cache per token beyond windows",
        "kib",
        lambda row: row.cache.bytes_per_token_beyond_windows,
        description="the same figure as `bytes_per_token_beyond_windows` of `kvcache`",
    ),
    Field(
        "cache_bytes_per_sequence",
        "cache and states per sequence",
        "gib",
        lambda row: row.cache.bytes_total,
        description="the same figure as `bytes_total` of `kvcache` for one sequence",
    ),
    Field(
        "kv_bytes_per_sequence",
        None,
        "gib",
        lambda row: row.cache.bytes_per_sequence,
        description="bytes of the keys and values per sequence, as `bytes_per_sequence` of `kvcache`. Recurrent "
        "states, the indexer's keys and cross-attention are not included; `kvcache` lists their bytes in other fields",
    ),
    Field(
        "inference_memory_bytes",
        "memory in inference",
        "gib",
        lambda row: None if row.inference is None else row.inference.peak_bytes,
        description="the same figure as `peak_bytes` of `memory --phase inference`",
    ),
    Field(
        "training_memory_bytes",
        "memory in training",
        "gib",
        lambda row: row.training.peak_bytes,
        description="the same figure as `peak_bytes` of `memory`: one sequence on one GPU, with AdamW",
    ),
    Field(
        "prefill_flops_per_token",
        "prefill per token",
        "gflops",
        scale="flops",
        description="the same figure as `flops_per_token` of `flops --phase prefill`",
    ),
    Field(
        "decode_flops_per_token",
        "decode per token",
        "gflops",
        scale="flops",
        description="the same figure as `flops_per_token` of `flops --phase decode`; null if the model has no decoder",
    ),
)


def _once(texts: Iterable[str]) -> list[str]:
    """Return the texts without repetitions, or an empty list if every text is "none"."""
    unique = distinct(texts)
    return [] if unique == ["none"] else unique


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(distinct(texts)) or "none"


def _numbers(values: Iterable[int | None]) -> list[int | None]:
    """Return the values without repetitions, or an empty list if every value is None."""
    unique = list(dict.fromkeys(values))
    return [] if unique == [None] else unique


def _norm(spec: ModelSpec) -> str:
    name = spec.norm.label
    if not spec.norm.weight:
        return f"{name} without weights"
    return f"{name} with bias" if spec.norm.bias else name


def _heads(mixer: AttentionKind) -> str:
    return f"{mixer.key_dim}" if mixer.key_dim == mixer.value_dim else f"{mixer.key_dim} / {mixer.value_dim}"


def _window(mixer: AttentionKind) -> str:
    if mixer.sliding_window:
        return f"{mixer.sliding_window:,}"
    return f"chunks of {mixer.attention_chunk_size:,}" if mixer.attention_chunk_size else "none"


def _biases(layers: list[Layer]) -> list[str]:
    names: list[str] = []
    for layer in layers:
        names += [name for mixer in branches(layer.mixer) for name in mixer.biases]
        names += ["feed-forward"] if layer.ffn is not None and layer.ffn.bias else []
    return distinct(names)
