"""Run an experiment: time its groups of candidates one after another, and store each row as soon as it is measured.

A group contains the candidates that are compared in one case. The candidates are built when their group starts, and
freed before the next group starts. Their predictions use the reference measurements of this run. A failure in one group
does not stop the other groups.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import product
from typing import Any, NamedTuple

import msgspec
import torch

from llmbench.bench.experiments import EXPERIMENTS
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.results.metrics import MachineLimits
from llmbench.errors import CannotRunError
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.clock import Call, Clock, CudaClock, DeviceLostError
from llmbench.measure.ranks import ALONE, Follower, Processes, RankedClock, Ranks
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Key, Row, Scalar
from llmbench.measure.store import Store
from llmbench.model.formats import Format
from llmbench.report.document import Table
from llmbench.report.units import Unit
from llmbench.sizing.work import Pass
from llmbench.spec.model import ModelSpec

__all__ = ["FULL", "QUICK", "Ask", "Chart", "Column", "Experiment", "Group", "Pace", "Shape", "Summary", "run"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a group is timed. Each candidate is warmed up for `warmup_s` seconds. Then the group is sampled for
    `budget_s` seconds, so that each candidate has `min_samples` to `max_samples` samples."""

    budget_s: float = 1.0
    warmup_s: float = 0.1
    min_samples: int = 10
    max_samples: int = 400

    def fixed(self, samples: int | None = None) -> Pace:
        """Return the pace with a fixed number of samples, which does not depend on the speed. Ranks need it, because
        all ranks must make the same number of calls. Rehearsals need it, because they must be short."""
        samples = samples or self.min_samples
        return replace(self, budget_s=0.0, warmup_s=0.0, min_samples=samples, max_samples=samples)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The candidates that are compared in one case.

    - `candidates(references)` builds the candidates, in the order of `names`.
    - `graphs`: whether a candidate whose call is short may be captured as a CUDA graph. A graph cannot contain a
      backward pass without its forward pass.
    - `attention`: whether the rows name the attention kernels that ran.
    - `energy`: whether the energy is measured, in joules.
    - `experiment`: the name of the experiment. `Experiment.named` sets it.
    """

    case: Mapping[str, Scalar]
    names: Sequence[str]
    candidates: Callable[[ReferenceMeasurements], Sequence[Candidate]]
    experiment: str = ""
    pace: Pace = Pace()
    graphs: bool = True
    attention: bool = False
    energy: bool = False

    def row_keys(self) -> list[Key]:
        """Return the keys of the group's rows. A key identifies a row in a results file."""
        case = tuple(sorted(self.case.items()))
        return [(self.experiment, case, name) for name in self.names]


FULL = Pace()
QUICK = Pace(budget_s=0.1, warmup_s=0.02, max_samples=50)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape that the user chose. The preset has the shape that the user did not choose.

    - `model`: the model; None if no model was named.
    - `changes`: the changes of the model (`--set`), as texts.
    - `seq_lens`, `batches`: the numbers of tokens and of sequences; empty if none was chosen.
    """

    model: ModelSpec | None = None
    changes: tuple[str, ...] = ()
    seq_lens: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()

    @property
    def options(self) -> list[str]:
        """The names of the options with which the user chose the shape."""
        chosen = {"--model": self.model, "--seq": self.seq_lens, "--batch": self.batches}
        return [option for option, value in chosen.items() if value]

    @property
    def digest(self) -> str | None:
        """A short text that differs between models with different specs, for example two files with one name."""
        if self.model is None:
            return None
        return sha256(msgspec.json.encode(self.model, order="sorted")).hexdigest()[:12]

    @property
    def case(self) -> dict[str, Scalar]:
        """The fields that name the chosen model in a case. Without a chosen model, there are none."""
        if self.model is None:
            return {}
        case: dict[str, Scalar] = {"model": self.model.name}
        if self.changes:
            case["set"] = ", ".join(self.changes)
        return case


@dataclass(frozen=True, kw_only=True)
class Ask:
    """The user's request to an experiment: the preset, the device, the number format, the ranks that take part, and the
    shape that replaces the shape of the preset."""

    quick: bool
    device: torch.device
    dtype: Format
    ranks: Ranks = ALONE
    shape: Shape = Shape()

    @property
    def on_gpu(self) -> bool:
        """Whether the experiment runs on a GPU. The shapes for a GPU are larger than those for a CPU."""
        return self.device.type == "cuda"

    @property
    def pace(self) -> Pace:
        """How long each group is timed."""
        return QUICK if self.quick else FULL

    def lengths(self, preset: Iterable[int]) -> tuple[int, ...]:
        """Return the numbers of tokens that the user chose, or those of the preset."""
        return self.shape.seq_lens or tuple(preset)

    def pairs(self, preset: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return the (batch, tokens) pairs of the preset, in which the numbers that the user chose replace those of the
        preset."""
        pairs = [
            pair for batch, length in preset for pair in product(self.shape.batches or (batch,), self.lengths([length]))
        ]
        return tuple(dict.fromkeys(pairs))

    def setting(self, spec: ModelSpec, *, seq_len: int, batch: int = 1, direction: Pass = "forward") -> Setting:
        """Return the setting for a piece of the model `spec`, with the device and the number format of the request."""
        return Setting(
            spec=spec, batch=batch, seq_len=seq_len, dtype=self.dtype, device=self.device, direction=direction
        )


class Chart(NamedTuple):
    """The x axis of an experiment's plots. `x`: the name of a field of the case. `label`: the label of the axis."""

    x: str
    label: str


class Column(NamedTuple):
    """A figure that an experiment adds to its table. `key`: its key in `Line.extra`. `spare`: as in `Field`."""

    key: str
    heading: str
    unit: Unit
    spare: int = 4


class Summary(NamedTuple):
    """A summary of all rows of an experiment.

    The terminal shows `table` before the other tables, `answer` above it, and `notes` below it. JSON contains `rows`
    under the key `key`.
    """

    key: str
    rows: list[dict[str, Any]]
    table: Table
    answer: str
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question, and the groups of candidates that answer the question.

    - `baseline`: the candidate with which the other candidates of a group are compared.
    - `columns`: the extra figures that the table shows.
    - `derived(row, limits)` computes more figures from the time of a row.
    - `finding(rows)` returns a sentence on the figures of `columns` in one table, or "".
    - `summary(ask, rows)` computes a table over all rows.
    - `model_note`: the line that says what the experiment takes from a model that the user named.
    - `notes`: the lines that explain the figures below the table.
    - `processes`: the number of processes in which the experiment can run.
    - `name`: the name of the experiment. `named` sets it.
    """

    question: str
    groups: Callable[[Ask], list[Group]]
    baseline: str
    columns: tuple[Column, ...] = ()
    chart: Chart | None = None
    derived: Callable[[Row, MachineLimits], Mapping[str, Scalar]] = lambda row, limits: {}
    finding: Callable[[Sequence[Row]], str] = lambda rows: ""
    summary: Callable[[Ask, Sequence[Row]], Summary] | None = None
    processes: Processes = "one"
    model_note: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""

    def named(self, name: str) -> Experiment:
        """Return a copy of the experiment with this name. Each group of the copy has `experiment` = `name`.

        The copy refuses a shape that the experiment has no meaning for."""

        def groups(ask: Ask) -> list[Group]:
            EXPERIMENTS[name].refuse_others(name, ask.shape.options)
            return [replace(group, experiment=name) for group in self.groups(ask)]

        return replace(self, name=name, groups=groups)


def run(
    groups: Iterable[Group],
    *,
    clock: Clock,
    references: ReferenceMeasurements,
    store: Store | Follower | None = None,
    started: Callable[[Group], None] = lambda group: None,
) -> Iterator[Row]:
    """Time the groups and yield their rows. Each row is written to the store before it is yielded.

    `started` is called with each group before the timing of the group begins.

    If all rows of a group are already in the store, the group is skipped and its rows are not yielded. An interrupted
    group is timed again as a whole, because its candidates are compared side by side. An interruption therefore loses
    only the rows of the current group. A candidate that destroyed the GPU's context or lost another rank in an earlier
    session is left out, because it would end this session too.

    Raises CannotRunError if a candidate destroyed the GPU's context or lost another rank. The row of that candidate is
    the last row.
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
                hint="the rows measured before this failure are in the --output file; --resume continues from there",
            ) from None


def _measured(group: Group, clock: Clock, references: ReferenceMeasurements, never: Set[Key]) -> Iterator[Row]:
    ranks = clock.ranks if isinstance(clock, RankedClock) else ALONE
    try:
        candidates = list(ranks.agreed(partial(group.candidates, references)))
        assert [candidate.name for candidate in candidates] == list(group.names)
    except DeviceLostError:
        raise
    except Exception as problem:  # no candidate could be built: each row gets the error as its reason
        candidates = [Candidate(name=name, prepare=_raising(problem)) for name in group.names]
    if isinstance(clock, CudaClock) and not group.graphs:
        clock = CudaClock(clock.device, graphs="never", cuda=clock.cuda)
    yield from check_and_time(
        [candidate for candidate, key in zip(candidates, group.row_keys(), strict=True) if key not in never],
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
