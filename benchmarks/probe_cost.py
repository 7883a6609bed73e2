"""How much of the time of a training do the probes of `llmbench dynamics` take?

    python benchmarks/probe_cost.py [--steps 100] [--layers 12]

A model trains with probes. The script prints the processor time inside the probes as a share of that of the rest of the
steps. Both come from the same run, so a busy machine slows both. The first steps have more observations than later
ones, so a short training shows more than the true share.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from llmbench.learn.data import corpus
from llmbench.learn.experiments.norms import OBSERVED
from llmbench.learn.experiments.placements import NARROW, SETTINGS, arms_of, base_of
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.probe import Moment, Probe
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
        probe = Timed(Observer(data.windows(settings.seq_len, OBSERVED)[0], FIGURES))
        times: list[float] = []  # after the first validation, and after each step

        def note(row: object) -> None:
            times.append(time.process_time())  # noqa: B023

        trained_arm(base, arm, data, settings, probes=[probe], on_step=note, on_validation=note)
        rest = times[options.steps] - times[0] - probe.seconds
        share = f"{probe.seconds:.2f} s in probes, {probe.seconds / rest:.1%} of the rest"
        print(f"{options.steps} steps: {rest:.1f} s without probes, {share}", flush=True)


class Timed(Probe):
    """A probe that adds up its processor time in `seconds`."""

    def __init__(self, inner: Probe) -> None:
        self.inner, self.seconds = inner, 0.0

    def gradients(self, moment: Moment) -> None:
        with self._counted():
            self.inner.gradients(moment)

    def updated(self, moment: Moment) -> Mapping[str, Any] | None:
        with self._counted():
            return self.inner.updated(moment)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds += time.process_time() - start


if __name__ == "__main__":
    main()
