"""Sentences that open a measured table, made from its rows.

A candidate is called faster or slower than the baseline only if two things hold. The difference is larger than the
noise that `diff` would grant two runs of unchanged code (`regressions.noise`), for the speed-up and for the two median
times. And at least 90% of the paired samples show the same direction. Otherwise the two are called equally fast if the
measured difference and the noise are both small. If one of them is large, the sentence says that the comparison is not
decided. This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmbench.bench.results.metrics import Line, peak_bytes
from llmbench.bench.results.words import in_words
from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import NOISY_SPREAD, Ratio, ratio
from llmbench.measure.regressions import DETECTABLE, MEMORY_SHARE, noise
from llmbench.report.units import percent, plural, shown, word_list

if TYPE_CHECKING:
    from llmbench.measure.regressions import Change, Difference
    from llmbench.measure.results import Row, Status

__all__ = ["Comparison", "about_cases", "about_changes", "about_kernels", "about_table", "advice_once", "comparison"]

FAR = 0.5
"""A row with a smaller share of its limit is called far from the limit."""

NAMED = 3
"""A sentence names at most this many candidates or rows. It counts the others."""

SMALL = 0.10
"""The noise and a difference are small up to this log ratio."""

Verdict = Literal["faster", "slower", "equal", "undecided"]


class Comparison(NamedTuple):
    """The comparison of a row with the baseline of its case.

    `speedup`: time of the baseline / time of the row, over the pairs of samples. `verdict`: "equal" if the difference
    is within the noise and both are small, "undecided" if the difference is within the noise and one of them is large.
    """

    row: Row
    baseline: Row
    speedup: Ratio
    verdict: Verdict

    @property
    def factor(self) -> str:
        """The speed-up, or how many times as long the row takes if the speed-up is below 1."""
        median = self.speedup.median
        return shown(1 / median if self.longer else median, "ratio")

    @property
    def longer(self) -> bool:
        """Whether the row takes longer than the baseline by the speed-up, with or without noise."""
        return 0 < self.speedup.median < 1


def comparison(row: Row, baseline: Row) -> Comparison | None:
    """Compare a row with its baseline. Return None if the times cannot be compared."""
    before, after = baseline.measurement, row.measurement
    if before is None or after is None or not before.median_s or not after.median_s:
        return None
    try:
        speedup = ratio(before, after)
    except LLMBenchError:  # the rows come from two sessions
        return None
    interval = noise(before, after)
    changes = math.log(after.median_s / before.median_s), -math.log(speedup.median) if speedup.median else 0.0
    verdicts = {interval.verdict(change) for change in changes}
    if verdicts == {"faster"} and speedup.p10 > 1:
        return Comparison(row, baseline, speedup, "faster")
    if verdicts == {"slower"} and speedup.p90 < 1:
        return Comparison(row, baseline, speedup, "slower")
    small = max(*map(abs, changes), -interval.low, interval.high) <= SMALL
    return Comparison(row, baseline, speedup, "equal" if small else "undecided")


# One table


def about_table(lines: Sequence[Line], baseline: str, x: str | None = None) -> str:
    """Return the sentences that open a table of an experiment or of `profile`.

    `baseline`: the candidate with which the others are compared; "" means the first one. `x`: the field of the case in
    which the rows differ. The rows with the largest x are compared. Rows with errors are named for every x.
    """
    rows = [line.row for line in lines]
    wrong = _wrong(rows)
    if not any(row.seconds for row in rows):
        return " ".join([*wrong, *_untimed(rows), "No row has a time."])
    last = max((_x(row, x) for row in rows if row.seconds), default=0.0)
    largest = [line for line in lines if _x(line.row, x) == last]
    several = x is not None and len({_x(row, x) for row in rows}) > 1
    place = f"At {in_words(largest[0].row.case, [x])[0]}, " if several and x is not None else ""
    sentences = [*_compared([line.row for line in largest], baseline), *_limit(largest)]
    sentences[:1] = [place + sentences[0]]
    return " ".join([*wrong, *sentences, *_untimed([line.row for line in largest])])


def _x(row: Row, x: str | None) -> float:
    value = row.case.get(x) if x else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def _names(names: Sequence[str]) -> str:
    """Return names as words: `a`, `a and b`, `a, b and c`, `a, b and 3 more`. A name with a comma is quoted."""
    quoted = [f'"{name}"' if "," in name else name for name in names]
    if len(quoted) > NAMED:
        quoted = [*quoted[: NAMED - 1], f"{len(quoted) - NAMED + 1} more"]
    return word_list(quoted)


def _compared(rows: Sequence[Row], baseline: str) -> list[str]:
    """Return the sentences on the times of one case. The first row with a time is the baseline if the named one has
    none."""
    timed = [row for row in rows if row.seconds]
    base = next((row for row in timed if row.implementation == baseline), timed[0])
    others = [row for row in timed if row is not base]
    name = _names([base.implementation])
    against = [one for row in others if (one := comparison(row, base)) is not None]
    if not against:
        return [f"{name} takes {_time(base)}.", *_least_memory(others, base)]
    sentences = []
    faster = sorted((one for one in against if one.verdict == "faster"), key=lambda one: -one.speedup.median)
    slower = sorted((one for one in against if one.verdict == "slower"), key=lambda one: one.speedup.median)
    equal = [one.row.implementation for one in against if one.verdict == "equal"]
    undecided = [one for one in against if one.verdict == "undecided"]
    said = None
    if len(faster) == 1 or (len(others) == 1 and slower):
        one = faster[0] if faster else slower[0]
        what = f"is {one.factor} faster than" if faster else f"takes {one.factor} as long as"
        memory = _memory(one.row, base)
        said = one.row if memory else None
        sentences.append(f"{_names([one.row.implementation])} {what} {name}{memory and f' and {memory}'}.")
        slower = [other for other in slower if other is not one]
    elif faster:
        sentences.append(f"{_with_factors(faster)} are faster than {name}.")
    if slower:
        verb = "takes" if len(slower) == 1 else "take"
        sentences.append(f"{_with_factors(slower)} {verb} longer than {name}.")
    if equal:
        who = f"All {len(equal)} other candidates" if NAMED < len(equal) == len(others) else _names(equal)
        sentences.append(_equally_fast(who, name, len(equal)))
    if undecided:
        sentences.append(_undecided(undecided, name))
    return [*sentences, *([] if said is not None and len(others) == 1 else _least_memory(others, base, said))]


def _equally_fast(who: str, baseline: str, count: int = 1) -> str:
    """Return a sentence on candidates that are as fast as the baseline. `count`: the number of candidates in `who`."""
    return f"{who} {'is' if count == 1 else 'are'} as fast as {baseline} within the noise."


AGAIN = "Measure again on an idle machine."


def advice_once(answers: Sequence[str]) -> list[str]:
    """Return the answers of one screen with the advice to measure again only in the first that has it."""
    first = next((place for place, answer in enumerate(answers) if AGAIN in answer), len(answers))
    return [*answers[: first + 1], *(answer.replace(f" {AGAIN}", "") for answer in answers[first + 1 :])]


def _undecided(compared: Sequence[Comparison], baseline: str) -> str:
    """Return the sentences on candidates of one case whose difference is not decided."""
    if all(math.exp(-SMALL) <= one.speedup.median <= math.exp(SMALL) for one in compared):
        names = _names([one.row.implementation for one in compared])
        verb = "is" if len(compared) == 1 else "are"
        return f"Not decided: whether {names} {verb} as fast as {baseline}. The noise of this run is too large. {AGAIN}"
    if len(compared) == 1:
        one = compared[0]
        what = f"took {one.factor} as long as" if one.longer else f"was {one.factor} faster than"
        name = _names([one.row.implementation])
        return f"Not decided: {name} {what} {baseline}, but the noise of this run is as large as that. {AGAIN}"
    speedups = _with_ratios((one.row.implementation, shown(one.speedup.median, "ratio")) for one in compared)
    reason = "because the noise of this run is as large as the differences"
    return f"Not decided: the speed-ups of {speedups}, {reason}. {AGAIN}"


def _undecided_cases(who: str, baseline: str) -> str:
    """Return the sentences on candidates without a clear difference in any case, of which at least one is undecided."""
    return (
        f"Not decided: whether {who} faster than {baseline}, because the noise of this run is as large as the "
        f"difference. {AGAIN}"
    )


def _time(row: Row) -> str:
    seconds = row.seconds or 0.0
    return f"{shown(seconds, 'ms')} ms" if seconds >= 1e-3 else f"{shown(seconds, 'us')} µs"


def _with_factors(compared: Sequence[Comparison]) -> str:
    return _with_ratios((one.row.implementation, one.factor) for one in compared)


def _with_ratios(named: Iterable[tuple[str, str]]) -> str:
    return _names([f"{_names([name])} ({ratio})" for name, ratio in named]).replace('""', '"')


def _memory(row: Row, baseline: Row) -> str:
    """Return the memory of a row compared with that of its baseline, in words, or "" if the two differ by no more than
    `MEMORY_SHARE`."""
    own, other = peak_bytes(row), peak_bytes(baseline)
    if not own or not other or abs(own / other - 1) <= MEMORY_SHARE:
        return ""
    return (
        f"uses {shown(own / other, 'ratio')} the memory" if own > other else f"uses {_share(own / other)} of the memory"
    )


def _least_memory(rows: Sequence[Row], baseline: Row, said: Row | None = None) -> list[str]:
    """Return a sentence on the row that uses the least memory, if it uses less than the baseline and is not the row of
    which this was said."""
    known = [row for row in rows if peak_bytes(row)]
    least = min(known, key=lambda row: peak_bytes(row) or 0, default=None)
    if least is None or least is said:
        return []
    words = _memory(least, baseline)
    if not words or (peak_bytes(least) or 0) >= (peak_bytes(baseline) or 0):
        return []
    return [f"{_names([least.implementation])} {words} of {_names([baseline.implementation])}."]


FRACTIONS = {1 / 2: "half", 1 / 3: "a third", 1 / 4: "a quarter", 2 / 3: "two thirds", 3 / 4: "three quarters"}


def _share(value: float) -> str:
    """Return a share in words if it is near a simple fraction, else in per cent."""
    return next((word for fraction, word in FRACTIONS.items() if abs(value - fraction) < 0.01), f"{value:.0%}")


def _limit(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a sentence on the limit of the machine, if the rows have a share of it. If the row with the largest share
    is noisy, the share is not reliable: the sentence is left out, or says so if there is only one row."""
    shares = {line.row.implementation: line.share_of_limit for line in lines if line.share_of_limit is not None}
    if not shares:
        return
    best = max(shares, key=lambda name: shares[name] or 0.0)
    most = shares[best] or 0.0
    noisy = any(line.row.implementation == best and (line.spread or 0.0) >= NOISY_SPREAD for line in lines)
    if noisy:
        if len(shares) == 1 and most <= 1:
            yield f"{best} reaches about {most:.0%} of the limit of this machine, but its times vary widely."
    elif most > 1:
        yield f"{best} exceeds its limit ({percent(most)} of it); a note says why."
    elif most >= FAR or len(shares) == 1:
        yield f"{best} reaches {percent(most)} of the limit of this machine."
    else:
        who = "Both are" if len(shares) == 2 else "All are"
        yield f"{who} far from the limit of this machine (at most {percent(most)} of it)."


def _by_status(rows: Iterable[Row], statuses: Sequence[Status]) -> dict[Status, list[str]]:
    names: dict[Status, list[str]] = {status: [] for status in statuses}
    for row in rows:
        if row.status in names and row.implementation not in names[row.status]:
            names[row.status].append(row.implementation)
    return {status: some for status, some in names.items() if some}


def _wrong(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each status of an error, with the candidates that have it in any row."""
    return [f"{_names(names)}: {status}." for status, names in _by_status(rows, ("INCORRECT", "FAILED")).items()]


LONGEST_REASON = 120
"""The largest length of a reason in a sentence, in characters. A note gives a longer one."""


def _untimed(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on the candidates that ran out of memory, and one on those that were not measured.

    The reason stands in the sentence if all of the latter have the same one, else in the notes.
    """
    sentences = []
    for status, names in _by_status(rows, ("OOM", "n/a")).items():
        if status == "OOM":
            sentences.append(f"{_names(names)} ran out of memory.")
            continue
        reasons = {row.reason for row in rows if row.status == "n/a"}
        verb = "was" if len(names) == 1 else "were"
        reason = reasons.pop() or ""
        because = f", because {reason}" if not reasons and len(reason) <= LONGEST_REASON else ""
        sentences.append(f"{_names(names)} {verb} not measured{because}.")
    return sentences


# Several tables


def about_cases(rows: Sequence[Row], baseline: str) -> str:
    """Return the sentences that open an experiment: in how many cases each candidate is faster or slower than the
    baseline. Without a baseline or with one case, only errors are named, because the tables say the rest."""
    sentences = _wrong(rows)
    if baseline and len({_case(row) for row in rows}) > 1:
        by_name = _grouped(_against(rows, baseline), lambda row: row.implementation)
        verdicts = {one.verdict for some in by_name.values() for one in some}
        if len(by_name) > 1 and verdicts == {"equal"}:
            return " ".join((*sentences, _equally_fast("Every candidate", _names([baseline]))))
        if len(by_name) > 1 and verdicts <= {"equal", "undecided"}:
            return " ".join((*sentences, _undecided_cases("any candidate is", _names([baseline]))))
        counted = sorted(by_name, key=lambda name: -sum(one.verdict == "faster" for one in by_name[name]))
        sentences += _counted({name: by_name[name] for name in counted[:NAMED]}, baseline)
        if len(counted) > NAMED:
            sentences.append(f"The tables also show {plural(len(counted) - NAMED, 'other candidate')}.")
    return " ".join(sentences)


def about_kernels(rows: Sequence[Row], baseline: str, *, timed: bool = True) -> str:
    """Return the sentences that open the table of `kernels bench`. `baseline`: the name of the references in the rows.
    `timed`: whether the times have a meaning."""
    named = [(str(row.case["kernel"]), row) for row in rows]
    wrong = {
        status: list(dict.fromkeys(name for name, row in named if row.status == status))
        for status in ("INCORRECT", "FAILED")
    }
    sentences = [f"{_names(names)}: {status}." for status, names in wrong.items() if names]
    if not timed:
        return " ".join(sentences)
    by_name = _grouped(_against(rows, baseline), lambda row: str(row.case["kernel"]))
    if len(by_name) > NAMED:
        every = [one for some in by_name.values() for one in some]
        sentences += _counted({"A kernel": every}, "its reference")
        slower = [name for name, some in by_name.items() if any(one.verdict == "slower" for one in some)]
        if slower:
            sentences.append(f"Slower in at least one case: {_names(slower)}.")
    else:
        sentences += _counted(by_name, "its reference")
    return " ".join(sentences)


def _case(row: Row) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(row.case.items()))


def _against(rows: Sequence[Row], baseline: str) -> Iterator[Comparison]:
    bases = {_case(row): row for row in rows if row.implementation == baseline}
    for row in rows:
        base = bases.get(_case(row))
        if base is not None and row is not base and (compared := comparison(row, base)) is not None:
            yield compared


def _grouped(compared: Iterable[Comparison], name: Callable[[Row], str]) -> dict[str, list[Comparison]]:
    by_name: dict[str, list[Comparison]] = {}
    for one in compared:
        by_name.setdefault(name(one.row), []).append(one)
    return by_name


def _counted(by_name: Mapping[str, Sequence[Comparison]], baseline: str) -> list[str]:
    """Return sentences on the number of cases in which each candidate is faster or slower than the baseline."""
    if not by_name:
        return [f"No row can be compared with {baseline}."]
    verdicts = {name: {one.verdict for one in some} for name, some in by_name.items()}
    clear = [name for name, some in verdicts.items() if some & {"faster", "slower"}]
    equal = [name for name, some in verdicts.items() if some == {"equal"}]
    undecided = [name for name in by_name if name not in (*clear, *equal)]
    sentences = [f"{_names([name])} {_tally(by_name[name], baseline)}." for name in clear]
    if equal:
        sentences.append(_equally_fast(_names(equal), _names([baseline]), len(equal)))
    if undecided:
        who = f"{_names(undecided)} {'is' if len(undecided) == 1 else 'are'}"
        sentences.append(_undecided_cases(who, _names([baseline])))
    return sentences


def _tally(compared: Sequence[Comparison], baseline: str) -> str:
    """Return the end of a sentence: `is faster than sdpa in 3 of 4 cases (1.20× to 1.80×) and slower in 1 (1.10×)`."""
    counts: list[str] = []
    for verdict in ("faster", "slower"):
        some = [one for one in compared if one.verdict == verdict]
        if some:
            cases = "its only case" if len(compared) == 1 else f"{len(some)} of {len(compared)} cases"
            than = f"than {_names([baseline])} in {cases}" if not counts else f"in {len(some)}"
            counts.append(f"{verdict} {than} ({_range(some)})")
    return f"is {' and '.join(counts)}"


def _range(compared: Sequence[Comparison]) -> str:
    ordered = sorted(compared, key=lambda one: abs(math.log(one.speedup.median)))
    return " to ".join(dict.fromkeys((ordered[0].factor, ordered[-1].factor)))


# Two runs


def about_changes(difference: Difference) -> str:
    """Return the sentences that open the table of `diff`: the regressions in words, then the other changes."""
    changes = difference.changes
    total = plural(len(changes), "row")
    worse = difference.regressions
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in CHANGED}
    if worse:
        first = f"{len(worse)} of {total} became worse."
    elif counts["unclear"] and not any(counts[verdict] for verdict in ("faster", "fixed", "same")):
        first = "The files do not show whether a row became worse."
    else:
        first = f"{'The only row did not become' if len(changes) == 1 else f'None of {total} became'} worse."
    sentences = [first, *(f"{where(change)} {_change(change)}." for change in worse[:NAMED])]
    sentences += [
        f"{plural(counts[verdict], 'row')} {one if counts[verdict] == 1 else many}."
        for verdict, (one, many) in CHANGED.items()
        if counts[verdict]
    ]
    slower = [change for change in changes if change.verdict == "unclear" and (change.ratio or 0) > DETECTABLE]
    if slower:
        most = max(slower, key=lambda change: change.ratio or 0)
        sentences.append(f"The slowest unclear row: {where(most)} takes {shown(most.ratio, 'ratio')} as long.")
    untimed = [change for change in changes if change.verdict == "untimed"]
    if untimed:
        sides = [side for change in untimed for side in (change.before, change.after) if side is not None]
        statuses = ", ".join(dict.fromkeys(side.status for side in sides))
        have = "has" if len(untimed) == 1 else "have"
        sentences.append(f"{plural(len(untimed), 'row')} {have} no time in either file ({statuses}).")
    return " ".join(sentences)


CHANGED: dict[str, tuple[str, str]] = {
    "faster": ("is faster by more than the noise", "are faster by more than the noise"),
    "fixed": ("works again", "work again"),
    "same": ("did not change by more than the noise", "did not change by more than the noise"),
    "unclear": ("is unclear, because its noise is too large", "are unclear, because their noise is too large"),
    "new": ("is only in the second file", "are only in the second file"),
    "gone": ("is only in the first file", "are only in the first file"),
}
"""What a sentence says of one row, and of several rows, for each verdict that is no regression, except "untimed"."""


def where(change: Change) -> str:
    """Return the row of a change in words: `flash in attention (causal, forward, 512 tokens)`."""
    row = change.row
    return f"{row.implementation} in {row.experiment} ({', '.join(in_words(row.case))})"


def _change(change: Change) -> str:
    """Return the end of a sentence on a regression."""
    parts = []
    if change.verdict == "slower" and change.ratio is not None:
        within = "" if change.noise is None else f" (noise can explain at most {shown(1 + change.noise, 'ratio')})"
        parts.append(f"takes {shown(change.ratio, 'ratio')} as long{within}")
    if change.verdict == "broken" and change.after is not None:
        parts.append(f"is now {change.after.status}")
    if change.memory_grew:
        ratio = change.peak_ratio
        parts.append("needs more memory" if ratio is None else f"needs {shown(ratio, 'ratio')} the memory")
    return " and ".join(parts)
