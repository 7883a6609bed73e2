"""Kernel launches by op: the rules of `eager` and `fused` against the calls of real models, and the rules of `vllm`."""

from __future__ import annotations

import re

import msgspec
import pytest

from llmbench.errors import CannotRunError
from llmbench.kernels.experts.routing import SCORES
from llmbench.kernels.pointwise.glu import ACTIVATIONS
from llmbench.model.trace import shortened
from llmbench.sizing.launches import PROFILES, ProfileName, launches, total_launches
from llmbench.sizing.launches.fused import FUSED_ACTIVATIONS, FUSED_SCORES
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import bundled_models, load_bundled
from tests.model.test_trace import with_few_experts
from tests.oracles.kernel_launches import counted

SEQ = 24
IMPLEMENTATIONS: dict[ProfileName, str] = {"eager": "standard", "fused": "fused"}
MODULES = ("attention", "cross_attention", "ffn", "mamba", "delta_net", "recurrent")

MODELS = {
    "gpt2": "learned positions, LayerNorm, biases",
    "llama3-8b": "RoPE, RMSNorm, GQA, SwiGLU",
    "qwen3-4b": "norms on queries and keys",
    "gemma2-2b": "unit offset, windows, soft caps, four norms, scaled embedding",
    "pythia-6.9b": "parallel sublayers with two norms, RoPE on a part of each head",
    "falcon-7b": "parallel sublayers with one norm, one key-value head",
    "command-r-plus": "norms with a weight per head, interleaved RoPE, scaled logits",
    "olmo2-7b": "norms on the outputs of sublayers",
    "granite-3-8b": "scaled outputs of sublayers",
    "bloom-560m": "ALiBi, norm after the embedding",
    "bert-base": "bidirectional, norms after the sums, token types, transform before the head",
    "transformer-base": "encoder and decoder, cross-attention, sinusoids",
    "t5-small": "relative bias",
    "deepseek-v3": "latent attention with a latent of the queries, groups of experts, shared experts",
    "deepseek-v3.2": "indexer",
    "gpt-oss-20b": "sinks, biases, the clamped SwiGLU, softmax of the selected experts",
    "qwen1.5-moe-a2.7b": "gate on the shared experts",
    "qwen3-next-80b-a3b": "gate on the output of attention, delta nets",
    "llama4-scout": "chunks, temperature, weights on the inputs of experts",
    "dbrx": "clipped queries, keys and values",
    "nemotron-3-nano-30b-a3b": "Mamba-2, squared ReLU, experts without gate",
    "mamba-130m": "Mamba",
}

UNKNOWN: dict[ProfileName, set[str]] = {
    "eager": {"t5-small", "deepseek-v3.2", "qwen3-next-80b-a3b", "nemotron-3-nano-30b-a3b", "mamba-130m"},
    "fused": {"qwen3-next-80b-a3b", "mamba-130m", "olmo2-7b", "llama4-scout"},
}
"""The models with an op whose launches are unknown."""


def part(name: str) -> str:
    """The part of the model that an op or a scope belongs to: one sublayer, the stream between sublayers, or the rest.

    The sum after a sublayer runs in the norm that reads it, so the norms and the sums of all layers are one part.
    """
    layer = re.match(r"((?:encoder\.)?layers\.\d+)\.?(.*)", name)
    if layer is None:
        return "stream" if name.endswith("final_norm") else "embedding and head"
    module = layer[2].partition(".")[0]
    return f"{layer[1]}.{module}" if module in MODULES else "stream"


def compared(name: str, profile: ProfileName, batch: int) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """The launches of the parts of a model with two layers of each kind, at full width: ours and the counted ones. Also
    the parts with an op whose launches are unknown."""
    spec = shortened(with_few_experts(name))
    work = Workload.prefill(SEQ, batch)
    ours: dict[str, int] = {}
    unknown: set[str] = set()
    names: set[str] = set()
    for op in lower(spec, work):
        names.update(op.names())
        number = launches(spec, work, op, profile)
        for where in map(part, op.names()):
            ours[where] = ours.get(where, 0) + (number or 0) // op.count
            if number is None:
                unknown.add(where)
    calls: dict[str, int] = {}
    for scope, number in counted(spec, names, IMPLEMENTATIONS[profile], seq_len=SEQ, batch=batch).items():
        if scope != "outside":
            calls[part(scope)] = calls.get(part(scope), 0) + number
    # Not in any op: one range numbers the tokens. With an encoder, two more number its tokens.
    calls["embedding and head"] -= 1 if spec.encoder is None else 3
    return ours, calls, unknown


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_eager_counts_the_functions_of_the_real_model(name: str, batch: int) -> None:
    ours, calls, unknown = compared(name, "eager", batch)
    known = ours.keys() - unknown
    assert bool(unknown) == (name in UNKNOWN["eager"])
    assert {where: ours[where] for where in known} == {where: calls.get(where, 0) for where in known}
    assert calls.keys() <= ours.keys()


@pytest.mark.parametrize("name", MODELS)
def test_fused_counts_the_launches_of_the_real_model(name: str) -> None:
    """If the implementation refuses a model, the launches are unknown."""
    try:
        ours, calls, unknown = compared(name, "fused", 2)
    except CannotRunError:
        spec, work = load_bundled(name), Workload.prefill(SEQ, 2)
        assert total_launches(spec, work, lower(spec, work), "fused") is None
        return
    known = ours.keys() - unknown
    assert bool(unknown) == (name in UNKNOWN["fused"])
    assert {where: ours[where] for where in known} == {where: calls.get(where, 0) for where in known}


def test_unknown_launches_are_not_zero() -> None:
    """Recurrences, relative biases, indexers and caches: no figure at all, also for the whole step."""
    prefill = Workload.prefill(SEQ)
    for name, op_name, profiles in (
        ("mamba-130m", "layers.{}.mamba.scan", ("eager", "fused")),
        ("qwen3-next-80b-a3b", "layers.{}.delta_net.scan", ("eager", "fused", "vllm")),
        ("t5-small", "layers.{}.attention.core", ("eager", "fused", "vllm")),
        ("deepseek-v3.2", "layers.{}.attention.core", ("eager", "fused", "vllm")),
    ):
        spec = load_bundled(name)
        ops = lower(spec, prefill)
        op = next(op for op in ops if op.name == op_name)
        for profile in PROFILES:
            assert (launches(spec, prefill, op, profile) is None) == (profile in profiles)
            assert (total_launches(spec, prefill, ops, profile) is None) == (profile in profiles)
    llama, decode, train = load_bundled("llama3-8b"), Workload.decode(SEQ), Workload.train(SEQ)
    assert total_launches(llama, decode, lower(llama, decode), "eager") is None
    assert total_launches(llama, train, lower(llama, train), "vllm") is None
    partly = msgspec.structs.replace(llama, undescribed=("a norm that the spec does not describe",))
    assert total_launches(partly, prefill, lower(partly, prefill), "vllm") is None


def test_the_kernels_support_what_the_rules_say() -> None:
    assert tuple(ACTIVATIONS) == FUSED_ACTIVATIONS
    assert tuple(SCORES) == FUSED_SCORES


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [
        # norm, qkv, RoPE, cache, attention, output; norm, gate and up, activation, down
        ("llama3-8b", 10),
        ("qwen3-8b", 12),  # two norms more
        ("gpt2", 9),  # no RoPE
        # instead of the feed-forward: router, selection, sort, two products, activation, sum
        ("mixtral-8x7b", 14),
    ],
)
@pytest.mark.parametrize("work", [Workload.prefill(SEQ), Workload.decode(SEQ, 4)], ids=["prefill", "decode"])
def test_vllm_fuses_as_its_layers_say(name: str, per_layer: int, work: Workload) -> None:
    spec = load_bundled(name)
    ops = lower(spec, work)
    outside = 3 + any(op.name == "position_embedding" for op in ops)  # embedding, last norm, head
    assert total_launches(spec, work, ops, "vllm") == spec.num_hidden_layers * per_layer + outside


def test_fusion_never_adds_launches() -> None:
    """Property over all bundled models: a profile with fewer kernels has no more launches in total."""
    work = Workload.prefill(1024, 2)
    answered = 0
    for name in bundled_models():
        spec = load_bundled(name)
        ops = lower(spec, work)
        eager, fused, vllm = (total_launches(spec, work, ops, profile) for profile in ("eager", "fused", "vllm"))
        if eager is not None and fused is not None and vllm is not None:
            answered += 1
            assert eager > fused > 0
            assert eager > vllm > 0
    assert answered > 100
