"""The bytes of stored attention scores."""

from __future__ import annotations

from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled


def ask(draw: Draw) -> Asked:
    """Ask for the bytes of the scores of all layers."""
    name = draw.pick("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    seq, batch, size = draw.pick(1024, 256, 512, 768), draw.pick(8, 2, 4, 16, 32), draw.pick(4, 2)
    spec = load_bundled(name)
    core = next(op for op in lower(spec, Workload.train(seq, batch, masked_pairs=True)) if op.scores is not None)
    assert core.scores is not None
    *_, heads, pairs = core.scores
    layers, elements = core.count, heads * pairs
    return Asked(
        text=f"A transformer has {layers} layers with {heads} heads each. Standard attention stores the scores of all "
        f"(query, key) pairs, with {size} bytes per score. How many bytes do the scores of all layers take, for "
        f"{batch} sequences of {seq:,} tokens?",
        kind="bytes",
        answer=size * layers * elements,
        tolerance=0.0,
        solution=f"{layers} layers × {batch} × {heads} heads × {seq:,}² × {size} bytes = {size * layers * elements:,}",
        mistakes=(
            ("this is one layer", size * elements),
            ("this is one sequence", size * layers * elements // batch),
            ("each head has its own scores", size * layers * pairs),
        ),
    )


EXERCISE = Question(
    "bytes of the scores that standard attention stores",
    ask,
    "Each head of each layer has a matrix of queries × keys. Twice the length has four times the scores.",
)
