"""Claims about FLOPs: rules of thumb, mixtures of experts, and the cost of a training."""

from __future__ import annotations

import msgspec

from llmbench.sizing.flops import count_flops
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled, load_device
from llmbench.spec.ffn import Gated, MoE
from llmbench.textbook.claim import Bound, Claim, Figure, Reading
from llmbench.textbook.models import parameters

__all__ = ["CLAIMS"]

SCALING = "scaling laws, arXiv 2001.08361"
GPT3 = "GPT-3, arXiv 2005.14165"
MIXTURES = "Switch, arXiv 2101.03961; Mixtral, arXiv 2401.04088"
STYLE = "an ablation from GPT-2 to LLaMA, arXiv 2302.13971"

GPT3_TOKENS = 300e9
V100_FLOPS_PER_S, V100_DOLLARS_PER_HOUR = 28e12, 1.50
"""The rate and the price that Lambda Labs assumed for a V100 ("Demystifying GPT-3", 2020)."""


def forward(model: str, seq_len: int) -> float:
    """Return the FLOPs per token of a forward pass, divided by 2 FLOPs for each parameter of a bundled model."""
    spec = load_bundled(model)
    return count_flops(spec, Workload.prefill(seq_len)).per_token / (2 * parameters(spec))


def step(model: str, seq_len: int, *, embeddings: bool, head: bool) -> float:
    """Return 6 FLOPs for each parameter of a bundled model, divided by the FLOPs per token of a training step.

    embeddings, head: whether the tables of tokens and positions, and the head, count as parameters.
    """
    spec = load_bundled(model)
    counts = count_parameters(spec)
    counted = counts.active_no_input_embedding if head else counts.active_no_embeddings
    return 6 * (counts.total if embeddings else counted) / count_flops(spec, Workload.train(seq_len)).per_token


def mixture(top_k: int) -> float:
    """Return the FLOPs per token of a mixture of experts, divided by those of Mistral-7B.

    Each expert is as wide as Mistral's feed-forward. The number of experts is chosen so that the mixture has ten times
    the parameters of Mistral-7B.
    """
    spec = load_bundled("mistral-7b-v0.1")
    layer = spec.layers["block"]
    assert isinstance(layer.ffn, Gated)
    counts = count_parameters(spec)
    experts = round(9 * counts.total / counts.components["mlp"]) + 1
    ffn = MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=layer.ffn.intermediate_size)
    sparse = msgspec.structs.replace(
        spec, layers={"block": msgspec.structs.replace(layer, ffn=ffn)}, published_parameters=None
    )
    prompt = Workload.prefill(2048)
    return count_flops(sparse, prompt).total / count_flops(spec, prompt).total


def gpt3_flops(*, masked: bool) -> float:
    """Return the FLOPs of GPT-3's training on 300 billion tokens in sequences of 2,048 tokens.

    masked: whether the scores that the causal mask hides count.
    """
    return GPT3_TOKENS * count_flops(load_bundled("gpt3-175b"), Workload.train(2048, masked_pairs=masked)).per_token


def gpt3_dollars(flops_per_s: float, dollars_per_hour: float) -> float:
    """Return the price of GPT-3's training on GPUs with this rate and this price."""
    return gpt3_flops(masked=False) / flops_per_s / 3600 * dollars_per_hour


def half_of_peak(device: str) -> float:
    """Return half of the datasheet's rate of fp16 matrix products, in FLOP/s."""
    return load_device(device).dense_flops_per_s["fp16"].value / 2


def styled(part: str, says: str, claimed: float, bound: Bound, run: str, why: str) -> Claim:
    """Return a claim about the time of a LLaMA-style model, compared with that of a GPT-2-style model."""
    return Claim(
        name=f"LLaMA {part}",
        says=says,
        claimed=claimed,
        at="about 10M parameters",
        source=STYLE,
        unit="change",
        bound=bound,
        reading=Reading(run, "time change", "LLaMA style", "GPT-2 style"),
        why=why,
    )


CLAIMS = (
    Claim(
        name="2·N forward",
        says="a forward pass needs 2 FLOPs for each parameter and token",
        claimed=1.0,
        at="FLOPs per token / 2·N",
        source=SCALING,
        figures=(
            Figure("op table / 2·N", lambda: forward("llama2-7b", 2048), "LLaMA-2-7B, 2,048 tokens"),
            Figure("op table / 2·N", lambda: forward("llama2-7b", 32768), "LLaMA-2-7B, 32,768 tokens"),
            Figure("op table / 2·N", lambda: forward("gpt2", 1024), "GPT-2, 1,024 tokens"),
        ),
        why="The rule leaves out the scores of attention, which grow with the length.",
        command="llmbench flops llama2-7b --seq 32k",
    ),
    Claim(
        name="6·N training",
        says="a training step needs 6 FLOPs for each parameter and token",
        claimed=1.0,
        at="GPT-2, 1,024 tokens, unless said; the textbook does not say which parameters N counts",
        source=SCALING,
        figures=(
            Figure(
                "6·N / op table",
                lambda: step("gpt2", 1024, embeddings=True, head=True),
                "N = all parameters",
            ),
            Figure(
                "6·N / op table",
                lambda: step("gpt2", 1024, embeddings=False, head=True),
                "N without embeddings, with the head",
            ),
            Figure(
                "6·N / op table",
                lambda: step("gpt2", 1024, embeddings=False, head=False),
                "N without embeddings and head",
            ),
            Figure(
                "6·N / op table",
                lambda: step("llama2-7b", 2048, embeddings=True, head=True),
                "LLaMA-2-7B, 2,048 tokens, N = all parameters",
            ),
        ),
        why="A lookup in a table costs no FLOPs, but the head is a matrix product. The scores of attention are missing"
        " in every version. Say which N you mean.",
        command="llmbench flops gpt2 --phase train --seq 1024",
    ),
    Claim(
        name="MoE compute",
        says="a mixture of experts has 10× the parameters for 1.5× the compute",
        claimed=1.5,
        bound="at most",
        at="the textbook states no shape and no routing; Mistral-7B and 2,048 tokens are assumed",
        source=MIXTURES,
        figures=(
            Figure("FLOPs of the mixture / FLOPs of Mistral-7B", lambda: mixture(1), "one expert per token"),
            Figure("FLOPs of the mixture / FLOPs of Mistral-7B", lambda: mixture(2), "two experts per token"),
        ),
        why="Each token pays for the experts that it uses, whatever the number of experts is.",
        command="llmbench flops mixtral-8x7b --seq 2048",
    ),
    Claim(
        name="GPT-3 FLOPs",
        says="the training of GPT-3 took 3.14 · 10²³ FLOPs",
        claimed=3.14e23,
        unit="flops",
        at="175B parameters, 300 billion tokens",
        source=f"{GPT3}, table D.1",
        figures=(
            Figure("op table × tokens", lambda: gpt3_flops(masked=False), "scores inside the causal mask"),
            Figure("op table × tokens", lambda: gpt3_flops(masked=True), "all scores"),
        ),
        why="The paper uses 6·N and leaves out attention, which is small in a model this wide.",
        command="llmbench flops gpt3-175b --phase train --seq 2048",
    ),
    Claim(
        name="GPT-3 cost",
        says="the training of GPT-3 cost $4.6 million",
        claimed=4.6e6,
        unit="dollars",
        at="300 billion tokens",
        source='Lambda Labs, "Demystifying GPT-3", 2020',
        figures=(
            Figure(
                "FLOPs / rate × price",
                lambda: gpt3_dollars(V100_FLOPS_PER_S, V100_DOLLARS_PER_HOUR),
                "V100 at 28 TFLOP/s and $1.50 per hour, as its source assumes",
            ),
            Figure(
                "FLOPs / rate × price",
                lambda: gpt3_dollars(half_of_peak("v100-sxm2-32gb"), V100_DOLLARS_PER_HOUR),
                "V100 at half of its peak, at the same price",
            ),
        ),
        why="The figure is an estimate, not a bill. It is as good as the assumed rate.",
        command="llmbench mfu gpt3-175b --device v100-sxm2-32gb --precision fp16 --tokens-per-s 26 --seq 2048",
    ),
    styled(
        "step",
        "a training step takes a LLaMA-style model 16% longer than a GPT-2-style model",
        0.16,
        "near",
        "style train",
        "Both models have almost the same FLOPs. The third matrix of SwiGLU and the rotation are small kernels.",
    ),
    styled(
        "forward",
        "a forward pass takes a LLaMA-style model 15% less time (85 ms in place of 100 ms)",
        -0.15,
        "or better",
        "style forward",
        "Fewer key-value heads save projections. The rest of the work is equal.",
    ),
    styled(
        "decode",
        "a decoding step takes a LLaMA-style model 25% less time than a GPT-2-style model",
        -0.25,
        "or better",
        "style decode",
        "The cache is smaller. In a model this small, the time goes into starting kernels.",
    ),
)
"""All claims of this topic."""
