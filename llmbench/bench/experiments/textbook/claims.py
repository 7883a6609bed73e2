"""A textbook's claims about the speed and memory of language models, and the rule that decides each claim.

The claimed figures come from the textbook. `source` names the paper behind a claim. The op table decides the analytic
claims. The rows of a run (see `runs`) decide the measured claims. On a GPU, a run uses the setting that the claim
states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from llmbench.bench.results.metrics import peak_bytes
from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import ratio
from llmbench.measure.results import Row
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import as_heads, kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated, MoE
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["CLAIMS", "Claim", "Outcome", "Verdict", "outcome"]

Rows = Mapping[str, Row]
"""The rows of a run, by the name of the candidate."""

NEAR = 0.10
"""A measured figure is near the claimed figure if they differ by at most this share of the claimed figure. Changes are
compared as ratios: a change of −25% is the ratio 0.75."""

Verdict = Literal["holds", "does not", "n/a here", "n/a"]
Bound = Literal["near", "or better", "at least", "at most"]


class NoFigureError(Exception):
    """The error for a claim that has no figure on this machine. The message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the textbook.

    - `says`: the claim in words.
    - `claimed`: the claimed figure. `shown`: the unit of this figure.
    - `at`: the setting that the claim states.
    - `bound`: how the measured figure must relate to `claimed`. "near": within NEAR. "at least", "at most": a bound.
      "or better": near `claimed`, or a larger gain. A gain is a speed-up above 1 or a change below 0.
    - `run`: the name of the run whose rows decide the claim; None for an analytic claim.
    - `value(rows)` computes the figure on this machine. It raises NoFigureError if there is none.
    - `any_size`: whether a run with a smaller model than that of the claim also decides the claim.
    - `unavailable`: the reason why llmbench cannot decide the claim.
    """

    name: str
    says: str
    claimed: float | None
    at: str
    source: str
    bound: Bound = "near"
    shown: Literal["ratio", "share", "change", "bytes", "yes"] = "ratio"
    run: str | None = None
    value: Callable[[Rows], float] | None = None
    any_size: bool = False
    unavailable: str = ""

    def holds(self, measured: float) -> bool:
        """Return whether the claim holds for this measured figure."""
        assert self.claimed is not None
        near = abs(measured - self.claimed) <= NEAR * (self.claimed + (self.shown == "change"))
        more, less = measured >= self.claimed, measured <= self.claimed
        better = less if self.shown == "change" else more
        return {"near": near, "or better": near or better, "at least": more, "at most": less}[self.bound]


class Outcome(NamedTuple):
    """The verdict on a claim, with the measured figure in the unit of the claim.

    `verdict` "holds" or "does not": the claim is decided. "n/a here": the figure was measured at a smaller setting than
    that of the claim, so the figures are not comparable. "n/a": there is no figure. `reason`: why the verdict is "n/a
    here" or "n/a".
    """

    claim: Claim
    measured: float | None
    verdict: Verdict
    reason: str = ""


SMALLER = "not comparable: the run was smaller than the setting of the claim"


def outcome(claim: Claim, rows: Rows, *, own_setting: bool = True) -> Outcome:
    """Decide a claim from the rows of its run. For an analytic claim, `rows` is empty. `own_setting`: whether the rows
    were measured at the setting that the claim states."""
    if claim.value is None or claim.claimed is None:
        return Outcome(claim, None, "n/a", claim.unavailable)
    try:
        measured = claim.value(rows)
    except NoFigureError as problem:
        return Outcome(claim, None, "n/a", str(problem))
    if claim.run is not None and not own_setting and not claim.any_size:
        return Outcome(claim, measured, "n/a here", SMALLER)
    return Outcome(claim, measured, "holds" if claim.holds(measured) else "does not")


def _row(rows: Rows, name: str) -> Row:
    if name not in rows:
        raise NoFigureError("not run")
    return rows[name]


def _timed(rows: Rows, name: str) -> Row:
    row = _row(rows, name)
    if row.status != "ok":
        raise NoFigureError(f"{name}: {row.status}, {row.reason}")
    return row


def time_ratio(numerator: str, denominator: str) -> Callable[[Rows], float]:
    """Return a function of the rows that computes the median of the per-sample time ratios of two candidates."""

    def value(rows: Rows) -> float:
        above, below = (_timed(rows, name).measurement for name in (numerator, denominator))
        assert above is not None
        assert below is not None
        try:
            return ratio(above, below).median
        except LLMBenchError as problem:
            raise NoFigureError(str(problem)) from None

    return value


def time_change(name: str, baseline: str) -> Callable[[Rows], float]:
    """Return a function of the rows that computes how much longer the candidate `name` takes than the candidate
    `baseline`, as a share of the baseline's time. The result is negative if `name` is faster."""
    value = time_ratio(name, baseline)
    return lambda rows: value(rows) - 1


def memory_change(name: str, baseline: str) -> Callable[[Rows], float]:
    """Return a function of the rows that computes how much more peak memory (with weights) the candidate `name` needs
    than the candidate `baseline`, as a share of the baseline's memory."""

    def peak(row: Row) -> int:
        measured = peak_bytes(row)
        if measured is None:
            raise NoFigureError(f"{row.implementation}: memory was not measured")
        return measured

    return lambda rows: peak(_timed(rows, name)) / peak(_timed(rows, baseline)) - 1


def figure(name: str, key: str) -> Callable[[Rows], float]:
    """Return a function of the rows that returns the extra figure `key` of the candidate `name`."""
    return lambda rows: float(_timed(rows, name).extra[key] or 0.0)


def runs(name: str) -> Callable[[Rows], float]:
    """Return a function of the rows that returns 1 if the candidate `name` has a time, and 0 if its model refused to
    run."""

    def value(rows: Rows) -> float:
        row = _row(rows, name)
        if row.status not in ("ok", "n/a"):
            raise NoFigureError(f"{name}: {row.status}, {row.reason}")
        return float(row.status == "ok")

    return value


def gpt2_small(num_positions: int) -> ModelSpec:
    """Return GPT-2 (twelve layers of width 768) with `num_positions` learned positions."""
    return override(load_bundled("gpt2"), {"positions.num_positions": num_positions})


def _standard_bytes() -> float:
    return training_memory(gpt2_small(8192), 8192, micro_batch=8, attention="standard", kernels="eager").peak_bytes


def _cache_of(kind: Literal["gqa", "mqa"]) -> float:
    """Return how much the KV cache of GPT-2 changes if the attention is replaced by `kind`, as a share of the original
    cache. The result is negative, because `kind` has fewer key-value heads."""
    spec = load_bundled("gpt2")
    fewer = as_heads(spec, kind, groups=4)
    assert fewer is not None
    return kv_cache(fewer, 1024).bytes_total / kv_cache(spec, 1024).bytes_total - 1


def _mixture(top_k: int) -> Callable[[Rows], float]:
    """Return a function that computes the FLOPs per token of a mixture of experts, divided by those of Mistral-7B.

    Each expert is as wide as Mistral's feed-forward. The number of experts is chosen so that the mixture has ten times
    the parameters of Mistral-7B.
    """
    spec = load_bundled("mistral-7b-v0.1")
    layer = spec.layers["block"]
    assert isinstance(layer.ffn, Gated)
    total, ffn = (count_parameters(spec).total, count_parameters(spec).components["mlp"])
    experts = round((9 * total + ffn) / ffn)
    mixture = MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=layer.ffn.intermediate_size)
    sparse = msgspec.structs.replace(
        spec, layers={"block": msgspec.structs.replace(layer, ffn=mixture)}, published_parameters=None
    )
    step = Workload.prefill(2048)
    return lambda rows: count_flops(sparse, step).total / count_flops(spec, step).total


FLASH = "FlashAttention, arXiv 2205.14135"
SHARED_HEADS = "multi-query attention, arXiv 1911.02150; grouped-query attention, arXiv 2305.13245"
STYLE = "an ablation from GPT-2 to LLaMA, arXiv 2302.13971"
DEPTH = "on layer normalization in the Transformer, arXiv 2002.04745"
LENGTH = "RoPE, arXiv 2104.09864; ALiBi, arXiv 2108.12409"
NO_CORPUS = "needs a full training on a text corpus, which `bench` does not run"
GPT2_TRAINING = "forward and backward pass of 12 layers of width 768, batch 8"

CLAIMS = (
    *(
        Claim(
            name=f"flash {length}",
            says=f"flash attention is {claimed}× as fast as standard at {length:,} tokens",
            claimed=claimed,
            at=GPT2_TRAINING,
            source=FLASH,
            bound="or better",
            run=f"flash {length}",
            value=time_ratio("standard", "flash"),
        )
        for length, claimed in ((512, 1.2), (1024, 2.2), (2048, 3.9), (4096, 7.9))
    ),
    Claim(
        name="flash memory",
        says="flash attention needs 52% less memory at 2,048 tokens",
        claimed=-0.52,
        at=GPT2_TRAINING,
        source=FLASH,
        bound="or better",
        shown="change",
        run="flash 2048",
        value=memory_change("flash", "standard"),
    ),
    Claim(
        name="standard 8192",
        says="standard attention does not fit into 40 GB at 8,192 tokens",
        claimed=40e9,
        at=f"{GPT2_TRAINING}, mixed precision",
        source=FLASH,
        bound="at least",
        shown="bytes",
        value=lambda rows: _standard_bytes(),
    ),
    Claim(
        name="GQA cache",
        says="the cache of grouped-query attention with 4 of 12 key-value heads is 67% smaller than that of MHA",
        claimed=-0.67,
        at="12 heads",
        source=SHARED_HEADS,
        bound="or better",
        shown="change",
        value=lambda rows: _cache_of("gqa"),
    ),
    Claim(
        name="MQA cache",
        says="the cache of multi-query attention is 92% smaller than that of MHA",
        claimed=-0.92,
        at="12 heads",
        source=SHARED_HEADS,
        bound="or better",
        shown="change",
        value=lambda rows: _cache_of("mqa"),
    ),
    *(
        Claim(
            name=f"{kind} decode, batch {batch}",
            says=f"{kind} decodes {claimed - 1:.0%} faster than MHA, batch {batch}",
            claimed=claimed,
            at=f"7B, 2,048 tokens; the textbook states no batch size; batch {batch} is assumed",
            source=SHARED_HEADS,
            bound="or better",
            run=f"decode {batch}",
            value=time_ratio("MHA", kind),
        )
        for batch in (1, 16)
        for kind, claimed in (("MQA", 1.38), ("GQA", 1.29))
    ),
    *(
        Claim(
            name=f"RMSNorm {direction}",
            says=f"RMSNorm is {claimed}× as fast as LayerNorm, {direction}",
            claimed=claimed,
            at="[32, 1024, 4096]",
            source="RMSNorm, arXiv 1910.07467",
            bound="or better",
            run=f"norm {direction}",
            value=time_ratio("LayerNorm", "RMSNorm"),
        )
        for direction, claimed in (("forward", 1.9), ("backward", 1.8))
    ),
    *(
        Claim(
            name=f"SwiGLU {direction}",
            says=f"SwiGLU takes {claimed}× the time of GELU at equal parameters, {direction}",
            claimed=claimed,
            at="the textbook states no shape; 8,192 tokens of width 4,096 are assumed",
            source="GLU variants, arXiv 2002.05202",
            run=f"glu {direction}",
            value=time_ratio("SwiGLU", "GELU"),
        )
        for direction, claimed in (("forward", 1.15), ("backward", 1.20))
    ),
    *(
        Claim(
            name=f"MoE top-{top_k}",
            says=f"a mixture of experts has 10× the parameters for 1.5× the compute (top-{top_k})",
            claimed=1.5,
            at="the textbook states no shape and no routing; Mistral-7B and 2,048 tokens are assumed",
            source="Switch, arXiv 2101.03961; Mixtral, arXiv 2401.04088",
            bound="at most",
            value=_mixture(top_k),
        )
        for top_k in (1, 2)
    ),
    Claim(
        name="LLaMA step",
        says="a training step takes a LLaMA-style model 16% longer than a GPT-2-style model",
        claimed=0.16,
        at="about 10M parameters",
        source=STYLE,
        shown="change",
        run="style train",
        value=time_change("LLaMA style", "GPT-2 style"),
    ),
    Claim(
        name="LLaMA decode",
        says="a decoding step takes a LLaMA-style model 25% less time than a GPT-2-style model",
        claimed=-0.25,
        at="about 10M parameters",
        source=STYLE,
        bound="or better",
        shown="change",
        run="style decode",
        value=time_change("LLaMA style", "GPT-2 style"),
    ),
    Claim(
        name="LLaMA loss",
        says="the loss of a LLaMA-style model is 1.42, the loss of a GPT-2-style model is 1.47",
        claimed=None,
        at="about 10M parameters",
        source=STYLE,
        unavailable=NO_CORPUS,
    ),
    Claim(
        name="post-norm",
        says="a post-norm model of more than about 24 layers does not train: its loss stays at the loss of guessing",
        claimed=0.97,
        at="30 layers, no warm-up",
        shown="share",
        source=DEPTH,
        bound="at least",
        run="depth",
        value=figure("post-norm", "loss_of_guessing"),
    ),
    Claim(
        name="pre-norm",
        says="a pre-norm model of more than about 24 layers trains: its loss falls below the loss of guessing",
        claimed=0.97,
        at="30 layers, no warm-up",
        shown="share",
        source=DEPTH,
        bound="at most",
        run="depth",
        value=figure("pre-norm", "loss_of_guessing"),
    ),
    *(
        Claim(
            name=f"{kind} length",
            says=f"a model with {kind} positions can{'not' * (not can)} read sequences longer than those in training",
            claimed=float(can),
            at="twice the length",
            source=LENGTH,
            shown="yes",
            bound="at least" if can else "at most",
            any_size=True,
            run="length",
            value=runs(kind),
        )
        for kind, can in (("learned", False), ("RoPE", True), ("ALiBi", True))
    ),
    Claim(
        name="perplexity by length",
        says="models with RoPE and ALiBi keep their perplexity on sequences longer than those in training",
        claimed=None,
        at="a model trained on short texts",
        source=LENGTH,
        unavailable=NO_CORPUS,
    ),
)
"""All claims. The same rows decide all claims with the same `run`."""
