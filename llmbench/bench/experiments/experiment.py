"""The frame of every experiment: groups of rivals, timed one group after the other, their rows kept as they come.

A group is one case: what is to be compared, at one shape. Its rivals are made when its turn comes, with what the
machine was found to be able to do, and are let go before the next. Nothing that goes wrong in one ends the others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from llmbench.bench.results.metrics import Yardsticks
from llmbench.errors import CannotRunError
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.clock import Call, Clock, CudaClock, DeviceLostError
from llmbench.measure.ranks import ALONE, Follower, Processes, RankedClock, Ranks
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Key, Row, Scalar, Store
from llmbench.model.formats import Format
from llmbench.report.document import Table, Unit

__all__ = ["FULL", "QUICK", "Ask", "Chart", "Experiment", "Group", "Pace", "Summary", "run"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a group is timed: `budget_s` for all rivals together once they are warm, and samples of each."""

    budget_s: float = 1.0
    warmup_s: float = 0.1
    min_samples: int = 10
    max_samples: int = 400

    def settled(self) -> Pace:
        """As many samples whatever a clock says, for processes that must all do the same."""
        return replace(self, budget_s=0.0, warmup_s=0.0, max_samples=self.min_samples)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rivals at one case. `names` are those of the rivals that `rivals(references)` makes, in their order.

    `graphs`: short rivals may be captured as CUDA graphs, which cannot hold a backward pass without its forward.
    `attention`: the attention kernels that ran are named in the rows. `energy`: joules are measured.
    """

    experiment: str
    case: Mapping[str, Scalar]
    names: Sequence[str]
    rivals: Callable[[ReferenceMeasurements], Sequence[Candidate]]
    pace: Pace = Pace()
    graphs: bool = True
    attention: bool = False
    energy: bool = False

    def row_keys(self) -> list[Key]:
        """What its rows are about."""
        case = tuple(sorted(self.case.items()))
        return [(self.experiment, case, name) for name in self.names]


FULL = Pace()
QUICK = Pace(budget_s=0.1, warmup_s=0.02, max_samples=50)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What an experiment is to do: its preset, where, in which format, and as which of the processes that take part."""

    quick: bool
    device: torch.device
    dtype: Format
    ranks: Ranks = ALONE

    @property
    def on_gpu(self) -> bool:
        """Whether shapes may be those of a GPU."""
        return self.device.type == "cuda"

    @property
    def pace(self) -> Pace:
        """How long each group is timed."""
        return QUICK if self.quick else FULL


class Chart(NamedTuple):
    """What its rows are drawn against: a field of the case, with its name in words."""

    x: str
    label: str


class Summary(NamedTuple):
    """What all rows say together: as a table with lines below it, and in JSON under `key`."""

    key: str
    rows: list[dict[str, Any]]
    table: Table
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question, and the groups that answer it. `baseline` is the rival that the others of its group are compared
    with; `columns` show figures of its rows: key, heading, how they are shown. `derived` gives figures that follow from
    a row's time, `summary` what all rows say together, `notes` what figures mean. `processes`: in how many it runs."""

    name: str
    question: str
    groups: Callable[[Ask], list[Group]]
    baseline: str
    columns: tuple[tuple[str, str, Unit], ...] = ()
    chart: Chart | None = None
    derived: Callable[[Row, Yardsticks], Mapping[str, Scalar]] = lambda row, yardsticks: {}
    summary: Callable[[Ask, Sequence[Row]], Summary] | None = None
    processes: Processes = "one"
    notes: tuple[str, ...] = ()


def run(
    groups: Iterable[Group],
    *,
    clock: Clock,
    references: ReferenceMeasurements,
    store: Store | Follower | None = None,
    started: Callable[[Group], None] = lambda group: None,
) -> Iterator[Row]:
    """Rows as they come, in the store before they are yielded. `started` hears of a group before it is timed.

    A group that the store has whole is left out, and its old rows are not yielded; of one that was broken off, every
    rival is timed again, because rivals are compared side by side: all but one that ended a session, which would end
    this one too. Whoever stops iterating, or is interrupted, loses only the rows of the group at hand. Raises
    CannotRunError where a rival took the GPU's context or other ranks with it: its own row is the last.
    """
    done, never = (set(), set()) if store is None else (store.done, store.ended_session)
    for group in groups:
        if all(key in done for key in group.row_keys()):
            continue
        started(group)
        try:
            for row in _measured(group, clock, references, never):
                if store is not None:
                    store.write([row])
                yield row
            gc.collect()
            if clock.device.type == "cuda":
                clock.check_device()
                torch.cuda.empty_cache()
        except DeviceLostError as problem:
            where = ", ".join(f"{name} {value}" for name, value in group.case.items())
            place = " at ".join(filter(None, (problem.candidate, where)))
            raise CannotRunError(
                f"{problem}, at {place}",
                hint="what was measured before is in the file of --output; --resume goes on from there",
            ) from None


def _measured(group: Group, clock: Clock, references: ReferenceMeasurements, never: Set[Key]) -> Iterator[Row]:
    ranks = clock.ranks if isinstance(clock, RankedClock) else ALONE
    try:
        rivals = list(ranks.agreed(partial(group.rivals, references)))
        assert [rival.name for rival in rivals] == list(group.names)
    except DeviceLostError:
        raise
    except Exception as problem:  # none can be made: each says so
        rivals = [Candidate(name=name, prepare=_raising(problem)) for name in group.names]
    if isinstance(clock, CudaClock) and not group.graphs:
        clock = CudaClock(clock.device, graphs="never", cuda=clock.cuda)
    yield from check_and_time(
        [rival for rival, key in zip(rivals, group.row_keys(), strict=True) if key not in never],
        experiment=group.experiment,
        case=group.case,
        clock=clock,
        ranks=ranks,
        energy=group.energy,
        attention=group.attention,
        **asdict(group.pace),
    )


def _raising(problem: Exception) -> Callable[[], Call]:
    def prepare() -> Call:
        raise problem

    return prepare
