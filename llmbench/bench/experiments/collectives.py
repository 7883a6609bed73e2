"""How fast are all-reduce, all-gather, reduce-scatter and all-to-all between ranks, for each tensor size?

The size is defined as in the op table. For an all-reduce, all-gather or reduce-scatter, it is the bytes of the whole
tensor. For an all-to-all, it is the bytes that one rank sends. The bandwidths are defined as in NVIDIA's nccl-tests
(doc/PERFORMANCE.md in that repository).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmbench.bench.experiments.experiment import Ask, Chart, Column, Experiment, Group
from llmbench.bench.results.metrics import MachineLimits
from llmbench.kernels.proof.accuracy import Verdict
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Row, Scalar
from llmbench.model.formats import DTYPES

__all__ = ["COLLECTIVES", "EXPERIMENT", "bandwidths", "derived", "group_of"]


class Collective(NamedTuple):
    """A collective operation of n ranks on one whole tensor.

    - `input_share(n)`, `output_share(n)`: the size of one rank's input and output, as a share of the whole tensor.
    - `run(output, input)` runs the collective.
    - `expected(n)`: the values in a rank's output if each rank r fills its input with r + 1. The output consists of
      equal parts. The list has one value per part.
    - `sent_share(n)`: the least bytes that a rank must send, as a share of the whole tensor (Patarasu and Yuan 2009 for
      the all-reduce).
    """

    input_share: Callable[[int], float]
    output_share: Callable[[int], float]
    run: Callable[[Tensor, Tensor], object]
    expected: Callable[[int], list[int]]
    sent_share: Callable[[int], float]


def _all(n: int) -> float:
    return 1.0


def _part(n: int) -> float:
    return 1 / n


def _others(n: int) -> float:
    return (n - 1) / n


def _one_per_rank(n: int) -> list[int]:
    return list(range(1, n + 1))


def _all_reduce(output: Tensor, input: Tensor) -> None:
    """Compute the maximum over the ranks, in place. A sum in place would grow from call to call until it is
    infinite."""
    dist.all_reduce(input, dist.ReduceOp.MAX)


# torch 2.13 renamed these two functions
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

COLLECTIVES = {
    "all_reduce": Collective(_all, _all, _all_reduce, lambda n: [n], lambda n: 2 * _others(n)),
    "all_gather": Collective(_part, _all, all_gather, _one_per_rank, _others),
    "reduce_scatter": Collective(_all, _part, reduce_scatter, lambda n: [n * (n + 1) // 2], _others),
    "all_to_all": Collective(_all, _all, dist.all_to_all_single, _one_per_rank, _others),
}
"""The collectives, by their names in the op table."""


def bandwidths(kind: str, whole_bytes: int, seconds: float, ranks: int) -> tuple[float, float]:
    """Return the algorithm bandwidth and the bus bandwidth, in bytes per second.

    The algorithm bandwidth is the bytes of the whole tensor divided by the time. The bus bandwidth is the bytes that a
    rank must send divided by the time. The bus bandwidth can be compared with the bandwidth of the rank's link.
    """
    algorithm = whole_bytes / seconds
    return algorithm, algorithm * COLLECTIVES[kind].sent_share(ranks)


def group_of(kind: str, whole_bytes: int, ask: Ask) -> Group:
    """Return the group of one collective at one size. Its only candidate is the backend of the device: NCCL or gloo."""
    collective, ranks, dtype = COLLECTIVES[kind], ask.ranks, DTYPES[ask.dtype]
    n = ranks.size
    whole = max(whole_bytes // dtype.itemsize // n, 1) * n  # a multiple of n, so that all ranks have equal parts
    inputs, outputs = (round(whole * share(n)) for share in (collective.input_share, collective.output_share))
    in_place = kind == "all_reduce"

    def tensors() -> tuple[Tensor, Tensor]:
        """Return the output tensor of this rank, and its input tensor with random values."""
        input = torch.rand(inputs, device=ask.device).to(dtype)
        return input if in_place else input.new_empty(outputs), input

    def prepare() -> Call:
        output, input = ranks.agreed(tensors)
        return lambda: collective.run(output, input)

    def check() -> list[Verdict]:
        output, input = ranks.agreed(tensors)
        input.fill_(ranks.rank + 1.0)
        collective.run(output, input)
        parts = collective.expected(n)
        expected = torch.tensor(parts, dtype=dtype, device=ask.device)
        error = float((output.view(len(parts), -1) - expected[:, None]).abs().max())
        # The error must be exactly 0, because every number format represents these small integers exactly.
        return [Verdict("out", error, 0.0, 0.0, all(ranks.gathered(error == 0.0)))]

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        need = (inputs + (0 if in_place else outputs)) * dtype.itemsize
        extra: dict[str, Scalar] = {"input_bytes": need}
        return [Candidate(name=dist.get_backend(), prepare=prepare, check=check, need_bytes=need, extra=extra)]

    case: dict[str, Scalar] = {
        "ranks": n,
        "dtype": ask.dtype,
        "collective": kind,
        "bytes": whole * dtype.itemsize,
    }
    return Group(
        case=case,
        names=[dist.get_backend()],
        candidates=candidates,
        pace=ask.pace.fixed(),
        graphs=False,
    )


def derived(row: Row, limits: MachineLimits) -> Mapping[str, Scalar]:
    """Return the algorithm bandwidth and the bus bandwidth of a row, in bytes per second."""
    kind, size, ranks = row.case["collective"], row.case["bytes"], row.case["ranks"]
    assert isinstance(size, int)
    assert isinstance(ranks, int)
    if not row.seconds:
        return {}
    algorithm, bus = bandwidths(str(kind), size, row.seconds, ranks)
    return {"algorithm_bytes_per_s": algorithm, "bus_bytes_per_s": bus}


def groups(ask: Ask) -> list[Group]:
    """Return one group per collective and size. Each size is 4 times the previous size. In the quick preset, the factor
    is 16 on a GPU and 256 on a CPU."""
    if ask.on_gpu:
        sizes = [2**exponent for exponent in range(12, 33, 4 if ask.quick else 2)]
    else:
        sizes = [2**12, 2**20] if ask.quick else [2**exponent for exponent in range(12, 27, 2)]
    return [group_of(kind, size, ask) for kind in COLLECTIVES for size in sizes]


EXPERIMENT = Experiment(
    question="how fast are collectives between ranks, for each tensor size?",
    groups=groups,
    baseline="",
    columns=(
        Column("bus_bytes_per_s", "bus bandwidth", "gb_per_s", spare=0),
        Column("algorithm_bytes_per_s", "algorithm bandwidth", "gb_per_s"),
    ),
    chart=Chart("bytes", "bytes"),
    derived=derived,
    processes="several",
    notes=(
        "bytes: the size of the whole tensor that is reduced, gathered or scattered; in an all-to-all, the bytes that"
        " one rank sends",
        "algorithm: bytes divided by the time of the slowest rank",
        "bus: the bytes that a rank must send, divided by the time of the slowest rank; compare bus with the bandwidth"
        " of the rank's link. With n ranks, bus is algorithm × 2(n−1)/n for an all-reduce, and algorithm × (n−1)/n"
        " for the other collectives",
    ),
)
