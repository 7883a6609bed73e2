"""The memory budget of an engine: the terms into which it divides the memory of one GPU.

The sum of the terms is the total memory of the GPU. The last term is the cache. It is negative if the other terms are
larger than the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import DType
from llmbench.sizing.formula import Formula, counted, plus, times
from llmbench.sizing.memory import cublas_workspace
from llmbench.sizing.serving.pools import PlainPool, Pool, paged_pool, ratio_pool
from llmbench.sizing.serving.shard import Shard
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import DeviceHead
from llmbench.spec.engine import Engine, Rule

MIB = 2**20
GIB = 2**30

CACHE = "cache"
"""The name of the term that the cache gets."""


MARLIN = ("awq", "gptq", "w4a16")
"""The formats of experts that vLLM multiplies with Marlin's kernels on every device."""


KEPT_FREE = "kept free by the utilization"
"""The name of the term that the engine may not use."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The budget of one GPU.

    terms: formulas of the terms. Their sum is the total memory of the GPU.
    usable: bytes that the engine may use: all terms except those that stay free and those outside its budget.
    share: the utilization. batched_tokens, sequences: largest step of the engine. 0: it has no limit.
    """

    device: DeviceHead
    engine: Engine
    shard: Shard
    terms: tuple[Formula, ...]
    usable: int
    pool: Pool
    share: float
    batched_tokens: int
    sequences: int

    @property
    def cache(self) -> int:
        """The bytes of the cache."""
        return self.terms[-1].value


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules of all engines need.

    total: memory of the GPU. gpus: GPUs that communicate: those of one replica of a dense model, and those of all
        copies of the attention that share the experts of a mixture. share: the utilization.
    """

    engine: Engine
    device: DeviceHead
    shard: Shard
    layout: Layout
    total: int
    gpus: int
    share: float
    batched: int
    sequences: int

    def constant(self, key: str) -> int:
        """Return a number of bytes: the constant for this number of GPUs and this architecture."""
        several = "_tp" if self.gpus > 1 and f"{key}_tp" in self.engine.constants else ""
        hopper = "_sm90" if self.device.compute_capability == "9.0" else ""
        names = [key] if key in self.engine.replaced else [f"{key}{several or hopper}", key]
        name = next((name for name in names if name in self.engine.constants), key)
        return self.engine.whole(name, device=self.device)

    @property
    def workspace(self) -> int:
        """The bytes of cuBLAS's workspace. Devices of other vendors have none."""
        capability = self.device.compute_capability
        return cublas_workspace(float(capability)) if capability else 0

    @property
    def loaded(self) -> list[Formula]:
        """The weights in memory, and what the engine adds to them."""
        shard, draft = self.shard, 0
        terms = [Formula(term="weights", text=counted(shard.weights, "bytes"), value=shard.weights)]
        if shard.draft is not None:
            draft = shard.draft.weights + shard.draft.padding + self._repeated(shard.draft) + shard.draft.rope
        added = (
            ("padding of the weights", shard.padding),
            ("scales repeated per output", self._repeated(shard)),
            ("table of RoPE", shard.rope),
            ("draft model", draft),
        )
        return terms + [Formula(term=term, text=counted(size, "bytes"), value=size) for term, size in added if size]

    def _repeated(self, shard: Shard) -> int:
        """Return the bytes that the scales of the weights gain if the engine converts the weights."""
        return shard.repeated_scales if converts(self.engine, shard, self.device) else 0

    def outside(self, term: str, key: str) -> list[Formula]:
        """Return a term with a constant of the profile, or nothing if it is 0."""
        value = self.constant(key)
        return [Formula(term=term, text=counted(value, "bytes"), value=value)] if value else []


def converts(engine: Engine, shard: Shard, device: DeviceHead) -> bool:
    """Return whether the engine converts weights that a device does not compute to the format of the activations."""
    if _computes(device, shard.products) or not _computes(device, shard.activations):
        return False
    return engine.converts(shard.format_name, device, experts=shard.moe)


def _computes(device: DeviceHead, products: DType) -> bool:
    """Return whether a device multiplies matrices in a number format. The vector units of all devices compute fp32."""
    return products == "fp32" or products in device.matrix_formats


def missing_format(engine: Engine, shard: Shard, device: DeviceHead) -> DType | None:
    """Return the number format of the matrix products if the engine cannot run them on the device, else None."""
    for part in (shard, *filter(None, (shard.draft,))):
        if not _computes(device, part.products) and not converts(engine, part, device):
            return part.products
    return None


def budget(
    engine: Engine, device: DeviceHead, shard: Shard, layout: Layout, *, seq: int, utilization: float | None = None
) -> Budget:
    """Divide the memory of a GPU as an engine does.

    seq: longest sequence that the engine accepts, in tokens. utilization: None stands for the engine's own default.

    Raises SpecError for a utilization that is not above 0 and at most 1.
    """
    total = device.total_bytes
    batched = engine.whole("batched_tokens", device=device)
    if "chunked_prefill" in engine.constants and not engine.whole("chunked_prefill"):
        batched = max(batched, seq)
    settings = _Settings(
        engine=engine,
        device=device,
        shard=shard,
        layout=layout,
        total=total,
        gpus=layout.tp * layout.pp * layout.cp * (layout.dp if shard.moe else 1),
        share=0,
        batched=batched,
        sequences=engine.whole("sequences", device=device),
    )
    share = utilization
    if share is None:
        share = engine.get("utilization") if "utilization" in engine.constants else _sglang_share(settings)
        share = min(share, device.gpu_memory_share)
    if not 0 < share <= 1:
        raise SpecError(f"utilization: must be above 0 and at most 1, not {share}")
    settings = msgspec.structs.replace(settings, share=share)
    terms, outside = _RULES[engine.spec.rule](settings)
    free = total - sum(term.value for term in (*terms, *outside))
    terms.append(Formula(term=CACHE, text="what remains", value=free))
    return Budget(
        device=device,
        engine=engine,
        shard=shard,
        terms=(*outside, *terms),
        usable=total - sum(term.value for term in outside),
        pool=_pool(settings, free),
        share=share,
        batched_tokens=batched,
        sequences=settings.sequences,
    )


def _pool(settings: _Settings, size: int) -> Pool:
    rows, engine = settings.shard.rows, settings.engine
    match engine.spec.rule:
        case "vllm":
            return paged_pool(size, rows, engine, settings.batched)
        case "sglang":
            return ratio_pool(size, rows, engine)
        case _:
            return PlainPool(size, rows, engine.whole("block_tokens", 1))


def _vllm(s: _Settings) -> tuple[list[Formula], list[Formula]]:
    """vLLM: a share of the total memory. The rest is for the CUDA context and, before 0.21, for CUDA graphs."""
    requested = ceil(s.total * s.share)
    rest = Formula(
        term=KEPT_FREE,
        text=f"{s.total:,} bytes − ceil({s.total:,} bytes × {s.share:g} utilization)",
        value=s.total - requested,
    )
    terms = [
        *s.loaded,
        _activations(s, _sampling(s)),
        *s.outside("outside PyTorch", "outside_torch"),
        *s.outside("CUDA graphs", "graphs"),
    ]
    return terms, [rest]


def _replaced_activations(s: _Settings) -> Formula | None:
    """Return the activations that the user set, or None."""
    if "activations" not in s.engine.replaced:
        return None
    value = s.engine.whole("activations")
    return Formula(term="activations", text=counted(value, "bytes"), value=value)


def _activations(s: _Settings, sampling: Formula) -> Formula:
    """Return the peak of a profiling step: that of its widest layer, or that of the sampler."""
    if own := _replaced_activations(s):
        return own
    gathered, experts = _gathered(s)
    layers = s.shard.layer * s.batched + gathered + s.workspace
    if layers >= sampling.value:
        text = plus(
            times(counted(s.batched, "tokens"), f"{s.shard.layer:,} bytes of a layer"),
            experts,
            counted(s.workspace, "bytes of cuBLAS's workspace") if s.workspace else "",
        )
        return Formula(term="activations of a layer", text=text, value=layers)
    return sampling


def _gathered(s: _Settings) -> tuple[int, str]:
    """Return the bytes that experts need for the tokens of all copies of the attention, and their formula.

    In vLLM, the experts of a GPU get all tokens (AgRsAll2AllManager: all-gather), and their hidden states exist as
    inputs and as outputs. The kernels compute a chunk of the tokens at once, and Marlin's kernels all of them.
    """
    if not s.shard.moe or s.layout.dp == 1 or s.engine.spec.rule != "vllm":
        return 0, ""
    tokens = s.layout.dp * s.batched
    marlin = s.shard.format_name in MARLIN or converts(s.engine, s.shard, s.device)
    chunk = tokens if marlin else min(tokens, s.engine.whole("experts_chunk") or tokens)
    text = plus(
        times(counted(tokens, "tokens of all copies"), f"2 × {s.shard.hidden:,} bytes"),
        times(counted(chunk, "tokens at once"), f"{s.shard.experts:,} bytes of experts"),
    )
    return 2 * tokens * s.shard.hidden + chunk * s.shard.experts, text


def _sampling(s: _Settings) -> Formula:
    """Return the memory of the sampler in the profiling step (`_dummy_sampler_run` in vLLM's gpu_model_runner.py).

    Every sequence has logits of the whole vocabulary on each GPU, in the format of the activations and in fp32. A sort
    adds the sorted values and their indices, and what PyTorch's sort allocates: the indices before the sort, and a
    second buffer for keys and indices. With fewer than 128 rows, PyTorch sorts all rows at once, with a segment number
    beside each index (aten/src/ATen/native/cuda/SortStable.cu). Without a sort, the fp32 probabilities and the random
    numbers follow, and the kernel has one row of the vocabulary per multiprocessor.

    The hidden states of all tokens stay allocated, and those of the last tokens exist twice.
    """
    rows = min(s.sequences, s.batched)
    logit_bytes = _logit_bytes(s)
    scratch = 0
    if s.engine.whole("sorts_logits"):
        logit_bytes += 12 + (20 if rows >= 128 else 32 if rows > 1 else 0)
    else:
        logit_bytes += 8
        scratch = min(s.device.num_sms, rows) * s.shard.vocabulary * 4
    hidden = (s.batched + 2 * rows) * s.shard.hidden
    if not s.shard.vocabulary:
        rows = 0
    value = rows * s.shard.vocabulary * logit_bytes + scratch + hidden + s.workspace
    text = plus(
        times(counted(rows, "sequences"), counted(s.shard.vocabulary, "logits"), f"{logit_bytes} bytes")
        if rows
        else "",
        counted(scratch, "bytes of the sampler's scratch") if scratch else "",
        counted(hidden, "bytes of hidden states"),
        counted(s.workspace, "bytes of cuBLAS's workspace") if s.workspace else "",
    )
    return Formula(term="activations and sampling", text=text, value=value)


def _logit_bytes(s: _Settings) -> int:
    """Return the bytes of one logit in the format of the activations and in fp32. fp32 activations need no copy."""
    own = s.shard.activation_bytes
    return own if s.shard.activations == "fp32" else own + 4


def _ideal(s: _Settings) -> tuple[list[Formula], list[Formula]]:
    """An ideal engine: weights, the widest op of a prefill step, and a CUDA context."""
    widest = s.shard.widest * s.batched
    text = times(counted(s.batched, "tokens"), f"{s.shard.widest:,} bytes of the widest op")
    terms = [
        *s.loaded,
        Formula(term="activations", text=text, value=widest),
        *_context(s),
    ]
    return terms, _not_usable(s)


def _context(s: _Settings) -> list[Formula]:
    """Return the term of the CUDA context. Metal has none."""
    return [] if s.device.vendor == "apple" else s.outside("CUDA context", "context")


def _not_usable(s: _Settings) -> list[Formula]:
    """Return the term of the memory that the utilization leaves out, or nothing if it leaves nothing out."""
    left = s.total - floor(s.total * s.share)
    text = f"{s.total:,} bytes − floor({s.total:,} bytes × {s.share:g} utilization)"
    return [Formula(term=KEPT_FREE, text=text, value=left)] if left else []


def _sglang_share(s: _Settings) -> float:
    """Return SGLang's default of mem_fraction_static, rounded to three decimals as SGLang does.

    It reserves 512 MiB, 1.5 MiB per token of a step, 2 MiB per sequence of a CUDA graph, and 128 MiB per GPU. GPUs with
    more than 60 GiB keep at least 10 GiB free. Attention with data parallelism needs 3 MiB per sequence and copy more,
    and 1.5 MiB more above 300 sequences.
    """
    layout, total = s.layout, s.total / MIB
    copies = layout.dp if s.shard.moe else 1  # replicas of a dense model are servers of their own
    large = layout.tp * copies >= 4 and "graph_sequences_tp4" in s.engine.constants
    graphs = s.engine.whole("graph_sequences_tp4" if large else "graph_sequences", device=s.device)
    reserved = 512 + 1.5 * max(s.batched, 2048) + 2 * graphs + 128 * layout.tp * copies * layout.pp
    if copies > 1:
        reserved += (3 if graphs <= 300 else 4.5) * graphs * copies
    if total > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((total - reserved) / total, 3)


def _sglang(s: _Settings) -> tuple[list[Formula], list[Formula]]:
    """SGLang: a share of the memory that is free before loading. The rest is for activations and CUDA graphs."""
    context = s.outside("CUDA context and NCCL" if s.gpus > 1 else "CUDA context", "context")
    free = s.total - sum(term.value for term in context)
    reserve = free - floor(free * s.share)
    text = f"{free:,} bytes − floor({free:,} bytes × {s.share:g} mem_fraction_static)"
    return s.loaded, [*context, Formula(term="activations and graphs", text=text, value=reserve)]


def _trtllm(s: _Settings) -> tuple[list[Formula], list[Formula]]:
    """TensorRT-LLM: a share of the memory that is free after a step with the largest number of tokens."""
    peak = [*s.loaded, _activations(s, _last_logits(s)), *s.outside("outside PyTorch", "outside_torch")]
    free = s.total - sum(term.value for term in peak)
    rest = free - floor(free * s.share)
    text = f"{free:,} free bytes − floor({free:,} bytes × {s.share:g} utilization)"
    return peak, [Formula(term=KEPT_FREE, text=text, value=max(0, rest))]


def _llamacpp(s: _Settings) -> tuple[list[Formula], list[Formula]]:
    """llama.cpp: model, compute buffers and cache are allocated at the start, and a margin stays free."""
    terms = [*s.loaded, _replaced_activations(s) or _ggml_buffer(s), *_context(s)]
    return terms, [*_not_usable(s), *s.outside("margin that stays free", "margin")]


def _last_logits(s: _Settings) -> Formula:
    """Return the memory of the logits of the last token of each sequence, in the format of the activations and fp32."""
    rows = min(s.sequences, s.batched)
    logit_bytes = _logit_bytes(s)
    hidden = s.batched * s.shard.hidden
    value = rows * s.shard.vocabulary * logit_bytes + hidden + s.workspace
    text = plus(
        times(counted(rows, "sequences"), counted(s.shard.vocabulary, "logits"), f"{logit_bytes} bytes"),
        counted(hidden, "bytes of hidden states"),
        counted(s.workspace, "bytes of cuBLAS's workspace") if s.workspace else "",
    )
    return Formula(term="activations and logits", text=text, value=value)


def _ggml_buffer(s: _Settings) -> Formula:
    """Return llama.cpp's compute buffer: the tensors that exist at the same time, in fp32 for every token of a step.

    At the head, these are the hidden state and the logits, if all are stored: 258.50 MiB for Llama-3-8B and 512 tokens,
    as llama.cpp prints. In a layer, see `ggml_layer`. ggml reuses the memory of all other tensors.
    """
    shard = s.shard
    hidden, layer, head = shard.hidden // shard.activation_bytes, ggml_layer(shard), ggml_head(s.engine, shard)
    text = plus(counted(head - hidden, "logits"), counted(hidden, "values of the hidden state"))
    if layer > head:
        inner = counted(shard.inner // shard.activation_bytes, "inner values of the feed-forward")
        text = plus(inner, times("2", counted(hidden, "values of the hidden state")))
    return Formula(
        term="compute buffer",
        text=times(counted(s.batched, "tokens"), f"({text})", "4 bytes"),
        value=4 * s.batched * max(head, layer),
    )


def ggml_head(engine: Engine, shard: Shard) -> int:
    """Return the values per token that exist at the head in llama.cpp: the hidden state, and all logits if stored."""
    logits = shard.vocabulary if engine.whole("all_logits") else 0
    return logits + shard.hidden // shard.activation_bytes


def ggml_layer(shard: Shard) -> int:
    """Return the values per token that exist at the widest moment of a layer in llama.cpp.

    They are the inner values of the feed-forward before its activation function, the residual stream, and its norm.
    """
    return (shard.inner + 2 * shard.hidden) // shard.activation_bytes


_RULES: dict[Rule, Callable[[_Settings], tuple[list[Formula], list[Formula]]]] = {
    "ideal": _ideal,
    "llamacpp": _llamacpp,
    "sglang": _sglang,
    "trtllm": _trtllm,
    "vllm": _vllm,
}
