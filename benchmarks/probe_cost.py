"""How much of the time of a training do the probes of `llmbench dynamics` take?

    python benchmarks/probe_cost.py [--steps 100] [--layers 12]

The same model trains with and without probes, in turns. The script prints the ratio of the processor times. The first
steps have more observations than later ones, so a short training shows more than the true share.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import msgspec
import torch

from llmbench.learn.data import corpus
from llmbench.learn.experiments.norms import OBSERVED
from llmbench.learn.experiments.placements import NARROW, SETTINGS, arms_of, base_of
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.probe import Probe
from llmbench.learn.probes import FIGURES, Observer
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override

ROUNDS = 3


def main() -> None:
    """Measure, and print one line for each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = corpus("markov:16,1,0")
    base = base_of(override(load_bundled("nanogpt-cpu"), {**NARROW, "vocab_size": data.vocab_size}), options.layers)
    settings = msgspec.structs.replace(SETTINGS, steps=options.steps, validate_every=options.steps)
    (arm,) = arms_of(["pre"], options.layers)
    for _ in range(ROUNDS):
        seconds = []
        observer = Observer(data.windows(settings.seq_len, OBSERVED)[0], FIGURES)
        choices: tuple[Sequence[Probe], ...] = ((), (observer,))
        for probes in choices:
            seconds.append(processor_time(lambda: trained_arm(base, arm, data, settings, probes=probes)))  # noqa: B023
        print(
            f"{options.steps} steps: {seconds[0]:.1f} s without probes, {seconds[1]:.1f} s with: "
            f"{seconds[1] / seconds[0]:.3f} times as long"
        )


def processor_time(call: Callable[[], object]) -> float:
    """Return the processor time of a call in seconds. It does not depend on other processes."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
