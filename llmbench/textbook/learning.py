"""Claims about training: depth and the place of norms, collapse and its remedy, and the loss of architectures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llmbench.textbook.claim import Claim, Estimate, Training
from llmbench.textbook.estimates import (
    condensed,
    entropy_gain,
    failures,
    least,
    loss_change,
    loss_ratio,
    perplexity_change,
    steps_ratio,
)

__all__ = ["CLAIMS"]

DEPTH = "on layer normalization in the Transformer, arXiv 2002.04745"
TRAINED = "width 64, 400 steps of 1,024 bytes"
AT = f"Xavier initialisation, learning rate 0.001, {TRAINED}"
FAILS = "share of the trainings whose last loss is like that of guessing each byte by its frequency"
STEPS = "steps of pre-norm / steps of post-norm, until both have the higher one of their last losses"
COLLAPSED = "in a post-norm model of 12 layers that does not train"
HEAD_DIM = 16
"""The width of the heads of the deep models."""
RANK = f"min of exp(entropy of the singular values) / {HEAD_DIM}"
STAGES = "condensation and rank collapse, arXiv 2510.06954"
STAGES_AT = f"small first weights are those of GPT-2; learning rate 0.001, {TRAINED}"
SMALL = (
    ("small-weights", "pre-gpt2", "2 layers, pre-norm, small first weights"),
    ("small-weights", "post-gpt2", "2 layers, post-norm, small first weights"),
    ("depth-12", "post-gpt2", "12 layers, post-norm, small first weights"),
)
"""The trainings with small first weights: the run, the variant and what it is."""
COLLAPSING = (0.05, 0.1)
"""The learning rates at which the attention entropy of a pre-norm model of 2 layers collapses."""
REPARAM = "σReparam, arXiv 2303.06296"
REPARAM_AT = f"a pre-norm model of 2 layers, whose entropy collapses at these rates; Xavier initialisation, {TRAINED}"


def fails(setting: str, run: str, arm: str, layers: int) -> Training:
    """Return the share of the trainings of a variant that fail."""
    return Training(FAILS, (run,), partial(failures, run, arm, layers), setting)


def quicker(setting: str, run: str, post: str, layers: int) -> Training:
    """Return the steps of pre-norm for some loss, divided by those of a variant of post-norm."""
    return Training(STEPS, (run,), partial(steps_ratio, run, "pre", post, layers), setting)


def smallest_rank(setting: str, run: str, arm: str) -> Training:
    """Return the smallest effective rank of queries times keys, as a share of the width of a head."""
    return Training(RANK, (run,), partial(least, run, arm, "qk_rank", whole=HEAD_DIM), setting)


def remedied(formula: str, value: Callable[[str, str, str, float], Estimate]) -> tuple[Training, ...]:
    """Return a figure of σReparam against pre-norm alone, at each learning rate."""
    run = "sigma-reparam"
    return tuple(
        Training(formula, (run,), partial(value, run, "sigma-reparam", "pre", lr), f"learning rate {lr}")
        for lr in COLLAPSING
    )


def activated(setting: str, run: str, swiglu: str, other: str) -> Training:
    """Return how much lower the perplexity of a design is with SwiGLU than with another activation, as a share."""
    value = partial(perplexity_change, run, swiglu, other)
    return Training("exp(loss of SwiGLU − loss of the other activation) − 1", (run,), value, setting)


CLAIMS = (
    Claim(
        name="post-norm fails",
        says="a deep post-norm model does not train: its loss stays at that of guessing",
        claimed=1.0,
        unit="share",
        bound="exact",
        at=AT,
        source=DEPTH,
        trainings=(
            fails("12 layers, no warm-up", "depth-12", "post", 12),
            fails("12 layers, warm-up over 200 steps", "depth-12", "post-warmup", 12),
            fails("12 layers, a third of the rate, no warm-up", "depth-12-low-rate", "post", 12),
            fails("6 layers, no warm-up", "depth-6", "post", 6),
            fails("24 layers, warm-up over 200 steps", "depth-24", "post-warmup", 24),
        ),
        why="The textbook says that post-norm fails beyond about 24 layers, and that warm-up helps below. Depth alone"
        " does not decide: the rate, the warm-up and the initialisation do, too.",
    ),
    Claim(
        name="pre-norm trains",
        says="a deep pre-norm model trains without warm-up: no training fails",
        claimed=0.0,
        unit="share",
        bound="exact",
        at=AT,
        source=DEPTH,
        trainings=(
            fails("12 layers", "depth-12", "pre", 12),
            fails("24 layers", "depth-24", "pre", 24),
        ),
        why="The residual stream passes all layers unchanged, so the gradients reach the first layer.",
    ),
    Claim(
        name="pre-norm speed",
        says="a pre-norm model needs 10% to 20% fewer steps than a post-norm model for the same loss",
        claimed=0.9,
        bound="at most",
        at=f"the textbook states no model; {AT} are assumed",
        source=DEPTH,
        trainings=(
            quicker("12 layers, post-norm with warm-up", "depth-12", "post-warmup", 12),
            quicker("6 layers, post-norm with warm-up", "depth-6", "post-warmup", 6),
            quicker("6 layers, post-norm without warm-up", "depth-6", "post", 6),
        ),
        why="A deep post-norm model needs a warm-up, which costs steps. A shallow one needs none.",
    ),
    Claim(
        name="entropy collapse",
        says="a training that fails shows an attention entropy below 0.5",
        claimed=0.5,
        unit="number",
        bound="at most",
        at=f"smallest normalised entropy of all heads and steps, {COLLAPSED}",
        source="attention entropy collapse, arXiv 2303.06296",
        trainings=(
            Training(
                "min of entropy / ln(visible keys)",
                ("depth-12",),
                partial(least, "depth-12", "post", "normalised_entropy"),
            ),
        ),
        why="Entropy collapse is one of several failures. This model fails because its tokens become equal, and its"
        " attention then stays even. Models that train have sharper heads.",
    ),
    Claim(
        name="rank collapse",
        says="in a training that fails, the effective rank of queries times keys falls below half",
        claimed=0.5,
        unit="share",
        bound="at most",
        at=f"smallest effective rank of W_Qᵀ·W_K of all heads and steps / width of a head, {COLLAPSED}",
        source=STAGES,
        trainings=(smallest_rank("", "depth-12", "post"),),
        why="The tokens can become equal while the weights keep their rank. A detector of one misses the other.",
    ),
    Claim(
        name="condensation stage",
        says="in a first stage of training, neurons condense: most neurons of a layer point the same way",
        claimed=0.5,
        unit="share",
        bound="at least",
        at="largest share of pairs of neurons of a layer with |cosine| > 0.9, until the effective rank of queries times"
        f" keys of a head falls below half; {STAGES_AT}; the textbook states no share, and half is assumed",
        source=STAGES,
        trainings=tuple(
            Training(
                "max of pairs of feed-forward neurons with |cosine| > 0.9 / all pairs",
                (run,),
                partial(condensed, run, arm, HEAD_DIM / 2),
                setting,
            )
            for run, arm, setting in SMALL
        ),
        why="The paper describes a model of one layer, whose first weights are nearly zero, under gradient flow. In"
        " these models with norms, residuals and AdamW, the rank falls while the neurons still point in different"
        " directions.",
    ),
    Claim(
        name="rank stage",
        says="in a second stage of training, the effective rank of queries times keys falls below half",
        claimed=0.5,
        unit="share",
        bound="at most",
        at=f"smallest effective rank of W_Qᵀ·W_K of all heads and steps / width of a head; {STAGES_AT}",
        source=STAGES,
        trainings=(
            *(smallest_rank(setting, run, arm) for run, arm, setting in SMALL),
            smallest_rank("12 layers, pre-norm, Xavier's larger first weights", "depth-12", "pre"),
        ),
        why="Small first weights are the condition. The models of 2 layers learn well, so a low rank of these matrices"
        " is no sign of a failure.",
    ),
    Claim(
        name="σReparam loss",
        says="a model whose attention entropy collapses learns better with the remedy σReparam",
        claimed=1.0,
        bound="at most",
        at=REPARAM_AT,
        source=REPARAM,
        trainings=remedied("loss with σReparam / loss without it", loss_ratio),
        why="σReparam divides each matrix by its largest singular value and learns one factor. So a high learning rate"
        " cannot make the logits of attention grow as fast.",
    ),
    Claim(
        name="σReparam entropy",
        says="a model whose attention entropy collapses keeps a higher entropy with σReparam",
        claimed=0.0,
        unit="number",
        bound="at least",
        at=REPARAM_AT,
        source=REPARAM,
        trainings=remedied("min of entropy / ln(visible keys) with σReparam − the same without it", entropy_gain),
        why="Without σReparam, heads attend to a single key, and their entropy is near zero. If all keys have equal"
        " logits, it is 1.",
    ),
    Claim(
        name="activation loss",
        says="SwiGLU lowers the perplexity from 3.45 to 3.15",
        claimed=3.15 / 3.45 - 1,
        unit="change",
        bound="or better",
        at="SwiGLU against another activation with equal parameters; the textbook states no model; 0.8 million"
        " parameters, steps of 768 bytes are assumed",
        source="GLU variants, arXiv 2002.05202",
        trainings=(
            activated("GELU, 600 steps", "gpt2-to-llama", "ffn", "heads"),
            activated("SiLU, 600 steps", "cs336", "cs336", "swiglu_ablation"),
            activated("ReLU, 300 steps", "llama-removed", "llama", "llama − ffn"),
        ),
        why="The gain over GELU and SiLU is larger than the difference between seeds. Over ReLU, these short trainings"
        " show no gain.",
    ),
    Claim(
        name="LLaMA loss",
        says="the loss of a LLaMA-style model is 1.42, the loss of a GPT-2-style model is 1.47",
        claimed=1.42 / 1.47 - 1,
        unit="change",
        bound="or better",
        at="about 10M parameters; the textbook states neither steps nor text",
        source="an ablation from GPT-2 to LLaMA, arXiv 2302.13971",
        trainings=(
            Training(
                "loss of LLaMA / loss of GPT-2 − 1",
                ("gpt2-to-llama",),
                partial(loss_change, "gpt2-to-llama", "ffn", "gpt2"),
                "0.8 million parameters, 600 steps",
                "these models are smaller than those of the claim, and their training is short",
            ),
        ),
        why="A table of positions learns each row by itself, so RoPE gains most in a short training. Without `--set`,"
        " the command trains the GPT-2 style.",
        command="llmbench train nanogpt-shakespeare --steps 5000 --batch 64 --setting dropout=0.2"
        " --set norm.kind=rmsnorm --set positions.kind=rope --set num_key_value_heads=2 --set ffn.kind=gated"
        " --set ffn.activation=silu --set ffn.intermediate_size=1024",
    ),
)
"""All claims of this topic."""
