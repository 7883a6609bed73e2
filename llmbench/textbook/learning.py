"""Claims about training: depth and the place of norms, collapse, and the loss of different architectures."""

from __future__ import annotations

from llmbench.textbook.claim import Claim, Reading

__all__ = ["CLAIMS"]

DEPTH = "on layer normalization in the Transformer, arXiv 2002.04745"
TRAINS = 0.9
"""A model trains if its loss falls below this share of the loss of guessing."""

AT = "12 layers of width 64, Xavier initialisation, learning rate 0.001, 250 steps of 512 tokens"

CLAIMS = (
    Claim(
        name="post-norm fails",
        says="a deep post-norm model does not train: its loss stays at the loss of guessing",
        claimed=TRAINS,
        unit="share",
        bound="at least",
        at=AT,
        source=DEPTH,
        readings=(
            Reading("depth", "loss", "post-norm", setting="no warm-up"),
            Reading("depth", "loss", "post-norm, warm-up", setting="warm-up over 100 steps"),
            Reading("depth", "loss", "post-norm, rate / 3", setting="a third of the rate, no warm-up"),
            Reading("depth", "loss", "post-norm, half the layers", setting="6 layers, no warm-up"),
        ),
        needs="CPU",
        command="llmbench bench textbook --preset full",
        why="The textbook says that post-norm fails beyond about 24 layers. Depth alone does not decide: the rate, the"
        " warm-up and the initialisation do, too.",
    ),
    Claim(
        name="pre-norm trains",
        says="a deep pre-norm model trains without warm-up",
        claimed=TRAINS,
        unit="share",
        bound="at most",
        at=AT,
        source=DEPTH,
        readings=(Reading("depth", "loss", "pre-norm"),),
        needs="CPU",
        command="llmbench bench textbook --preset full",
        why="The residual stream passes all layers unchanged, so the gradients reach the first layer.",
    ),
    Claim(
        name="pre-norm speed",
        says="a pre-norm model needs 10% to 20% fewer steps than a post-norm model for the same loss",
        claimed=0.9,
        bound="at most",
        at="the textbook states no model; steps of pre-norm / steps of post-norm",
        source=DEPTH,
        needs="CPU",
        command="llmbench dynamics --arms pre,post-warmup",
        why="The figure depends on the rate, the warm-up and the depth. Both models need their own best rate.",
    ),
    Claim(
        name="entropy collapse",
        says="a training that fails shows an attention entropy below 0.5",
        claimed=0.5,
        unit="number",
        bound="at most",
        at="normalised entropy, the smallest of all layers, in a post-norm model that does not train",
        source="attention entropy collapse, arXiv 2303.06296",
        needs="CPU",
        command="llmbench dynamics --arms post --lr 1e-3",
        why="Entropy collapse is one of several failures. A model can also fail because its tokens become equal, and"
        " its attention then stays even.",
    ),
    Claim(
        name="rank collapse",
        says="in a training that fails, the effective rank of queries times keys falls below half",
        claimed=0.5,
        unit="share",
        bound="at most",
        at="effective rank of W_Qᵀ·W_K / width of a head, in a post-norm model that does not train",
        source="condensation and rank collapse, arXiv 2510.06954",
        needs="CPU",
        command="llmbench dynamics --arms post --lr 1e-3",
        why="The tokens can become equal while the weights keep their rank. A detector of one misses the other.",
    ),
    Claim(
        name="activation loss",
        says="SwiGLU lowers the perplexity from 3.45 to 3.15",
        claimed=3.15 / 3.45,
        at="the textbook states no model; perplexity of SwiGLU / perplexity of the worst activation",
        source="GLU variants, arXiv 2002.05202",
        needs="CPU",
        command="llmbench ablate --only swiglu_ablation",
        why="One run per activation decides nothing, if the difference is as small as the difference between seeds.",
    ),
    Claim(
        name="LLaMA loss",
        says="the loss of a LLaMA-style model is 1.42, the loss of a GPT-2-style model is 1.47",
        claimed=1.42 / 1.47,
        at="about 10M parameters; loss / loss",
        source="an ablation from GPT-2 to LLaMA, arXiv 2302.13971",
        why="A full training of 10M parameters takes long on a CPU. The textbook states neither steps nor text.",
        command="llmbench ablate nanogpt-shakespeare --steps 5000",
    ),
)
"""All claims of this topic."""
