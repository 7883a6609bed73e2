"""How fast do GPUs send: all-reduce, all-gather, reduce-scatter, all-to-all, by size?

Sizes are those of the Op table's collectives: the whole tensor that is reduced or gathered, and what one rank sends in
an all-to-all. Bandwidths are defined as NVIDIA's nccl-tests do (doc/PERFORMANCE.md there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.results.metrics import Yardsticks
from llmbench.kernels.proof.accuracy import Verdict
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Row, Scalar
from llmbench.model.formats import DTYPES

__all__ = ["COLLECTIVES", "EXPERIMENT", "derived", "group_of", "links"]


class Collective(NamedTuple):
    """A collective over n ranks and `whole` elements.

    `given(n)`, `got(n)`: what a rank has and gets, as shares of the whole. `run(got, given)` does it. `expected(n)`:
    what a rank gets where rank r gives r + 1 throughout, a value for each equal part. `sent(n)`: what a rank must send
    at least, as a share of the whole (Patarasu and Yuan 2009 for the all-reduce).
    """

    given: Callable[[int], float]
    got: Callable[[int], float]
    run: Callable[[Tensor, Tensor], object]
    expected: Callable[[int], list[int]]
    sent: Callable[[int], float]


def _all(n: int) -> float:
    return 1.0


def _part(n: int) -> float:
    return 1 / n


def _others(n: int) -> float:
    return (n - 1) / n


def _each(n: int) -> list[int]:
    return list(range(1, n + 1))


def _all_reduce(got: Tensor, given: Tensor) -> None:
    """Of the largest, for it is done in place: sums would grow from call to call until they are infinite."""
    dist.all_reduce(given, dist.ReduceOp.MAX)


# torch 2.13 gave two of them new names
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

COLLECTIVES = {
    "all_reduce": Collective(_all, _all, _all_reduce, lambda n: [n], lambda n: 2 * _others(n)),
    "all_gather": Collective(_part, _all, all_gather, _each, _others),
    "reduce_scatter": Collective(_all, _part, reduce_scatter, lambda n: [n * (n + 1) // 2], _others),
    "all_to_all": Collective(_all, _all, dist.all_to_all_single, _each, _others),
}
"""By the names of the Op table's collectives."""


def links(kind: str, whole_bytes: int, seconds: float, ranks: int) -> tuple[float, float]:
    """Algorithm bandwidth, the whole over the time; and bus bandwidth, what a rank must send over the time, which is to
    be compared with its link. Bytes a second."""
    algorithm = whole_bytes / seconds
    return algorithm, algorithm * COLLECTIVES[kind].sent(ranks)


def group_of(kind: str, whole_bytes: int, ask: Ask) -> Group:
    """A collective at a size, by the backend that the device has."""
    of, ranks, dtype = COLLECTIVES[kind], ask.ranks, DTYPES[ask.dtype]
    n = ranks.size
    whole = max(whole_bytes // dtype.itemsize // n, 1) * n  # in equal parts
    given_bytes, got_bytes = (round(whole * share(n)) * dtype.itemsize for share in (of.given, of.got))
    in_place = kind == "all_reduce"

    def made() -> tuple[Tensor, Tensor]:
        """What a rank gets, and what it gives: random values."""
        given = torch.rand(given_bytes // dtype.itemsize, device=ask.device).to(dtype)
        return given if in_place else given.new_empty(got_bytes // dtype.itemsize), given

    def prepare() -> Call:
        got, given = ranks.agreed(made)
        return lambda: of.run(got, given)

    def check() -> list[Verdict]:
        got, given = ranks.agreed(made)
        given.fill_(ranks.rank + 1.0)
        of.run(got, given)
        parts = of.expected(n)
        expected = torch.tensor(parts, dtype=dtype, device=ask.device)
        error = float((got.view(len(parts), -1) - expected[:, None]).abs().max())
        return [Verdict("out", error, 0.0, 0.0, all(ranks.gathered(error == 0.0)))]  # small integers: exact

    def rivals(references: ReferenceMeasurements) -> list[Candidate]:
        need = given_bytes + (0 if in_place else got_bytes)
        figures: dict[str, Scalar] = {"input_bytes": need}
        return [Candidate(name=dist.get_backend(), prepare=prepare, check=check, need_bytes=need, extra=figures)]

    case: dict[str, Scalar] = {
        "ranks": n,
        "dtype": ask.dtype,
        "collective": kind,
        "bytes": whole * dtype.itemsize,
    }
    return Group(
        experiment="collectives",
        case=case,
        names=[dist.get_backend()],
        rivals=rivals,
        pace=ask.pace.settled(),
        graphs=False,
    )


def derived(row: Row, yardsticks: Yardsticks) -> Mapping[str, Scalar]:
    """Both bandwidths."""
    kind, size, ranks = row.case["collective"], row.case["bytes"], row.case["ranks"]
    assert isinstance(size, int)
    assert isinstance(ranks, int)
    if not row.seconds:
        return {}
    algorithm, bus = links(str(kind), size, row.seconds, ranks)
    return {"algorithm_bytes_per_s": algorithm, "bus_bytes_per_s": bus}


def groups(ask: Ask) -> list[Group]:
    """Powers of four, or of sixteen where time is short."""
    if ask.on_gpu:
        sizes = [2**exponent for exponent in range(12, 33, 4 if ask.quick else 2)]
    else:
        sizes = [2**12, 2**20] if ask.quick else [2**exponent for exponent in range(12, 27, 2)]
    return [group_of(kind, size, ask) for kind in COLLECTIVES for size in sizes]


EXPERIMENT = Experiment(
    name="collectives",
    question="how fast do ranks send to each other, by size?",
    groups=groups,
    baseline="",
    columns=(
        ("algorithm_bytes_per_s", "algorithm", "gb_per_s"),
        ("bus_bytes_per_s", "bus", "gb_per_s"),
    ),
    chart=Chart("bytes", "bytes of the whole"),
    derived=derived,
    processes="several",
    notes=(
        "bytes: the whole tensor that is reduced, gathered or scattered; what one rank sends in an all-to-all",
        "algorithm: bytes over the time of the slowest rank",
        "bus: what a rank must send over that time, to be compared with its link: the algorithm's bandwidth"
        " × 2(n−1)/n for an all-reduce, × (n−1)/n for the others, with n ranks",
    ),
)
