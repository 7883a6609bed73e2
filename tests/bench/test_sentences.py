"""The sentences that open measured tables: they claim what the rows show, and nothing else."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.bench.results.metrics import METRICS, Line, MachineLimits, as_json
from llmbench.bench.results.sentences import (
    SMALL,
    about_cases,
    about_changes,
    about_kernels,
    about_table,
    advice_once,
    comparison,
)
from llmbench.measure.measurement import Measurement, quantile
from llmbench.measure.memory import MemoryPeak
from llmbench.measure.regressions import NOISE_FLOOR, diff
from llmbench.measure.results import Row, Status
from llmbench.report.units import shown
from tests.measure.rows import references, results

LIMITS = MachineLimits(references(), None)
WRONG = ("INCORRECT", "FAILED")


def row(name: str, samples: list[float] | float, *, status: Status = "ok", added: int = 0, **case: Any) -> Row:
    """A row with these samples, or with ten equal ones."""
    fields: dict[str, Any] = {"reason": "it needs a GPU"}
    if status == "ok":
        times = [samples] * 10 if isinstance(samples, float) else samples
        fields = {"measurement": Measurement(samples_s=tuple(times), clock="cpu")}
        fields["memory"] = MemoryPeak(added_bytes=added, by="tensors") if added else None
    return Row(experiment="attention", case={"seq_len": 64} | case, implementation=name, status=status, **fields)


def about(*rows: Row, x: str | None = None) -> str:
    """The sentences of a table with the baseline `standard`."""
    bases = {row.case["seq_len"]: row for row in rows if row.implementation == "standard"}
    return about_table([Line(row, LIMITS, bases.get(row.case["seq_len"])) for row in rows], "standard", x)


times = st.lists(st.floats(1e-6, 1e-2), min_size=5, max_size=5)
candidates = st.lists(
    st.tuples(times, st.sampled_from(("ok", "ok", "ok", "n/a", "OOM", *WRONG)), st.integers(0, 2**24)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(times, candidates, st.floats(0.3, 3))
def test_a_claim_is_what_the_rows_show(base: list[float], others: list[Any], factor: float) -> None:
    """The ratio in a sentence is the speed-up of the row. Nothing is claimed if the samples of both rows point in both
    directions, or if the medians are closer than the noise. A large difference within the noise is not decided, and a
    candidate that is as fast as the baseline has a small difference. Candidates with an error are named."""
    standard = row("standard", base, added=2**20)
    rows, base_s = [standard], quantile(base, 0.5)
    for number, (samples, status, added) in enumerate(others):
        close = [sample * factor for sample in base] if number % 2 else samples
        rows.append(row(f"c{number}", close, status=status, added=added))
    text = about(*rows)
    lines = {one.implementation: Line(one, LIMITS, standard) for one in rows[1:]}
    claimed = {name: (ratio, verb) for name, verb, ratio in re.findall(r"(c\d) (is|takes) ([\d.,]+×)", text)}
    sentences = text.split(". ")
    for part in sentences:
        if " are faster than" in part or "longer than" in part:
            verb = "is" if "faster" in part else "takes"
            claimed |= {name: (ratio, verb) for name, ratio in re.findall(r"(c\d) \(([\d.,]+×)\)", part)}
    undecided = [part for part in sentences if part.startswith("Not decided: ")]
    for name, verb, ratio in re.findall(r"(c\d) (was|took) ([\d.,]+×)", " ".join(undecided)):
        speedup = lines[name].speedup
        assert speedup is not None
        assert ratio == shown(speedup if verb == "was" else 1 / speedup, "ratio")
    for name, ratio in re.findall(r"(c\d) \(([\d.,]+×)\)", " ".join(undecided)):
        assert ratio == shown(lines[name].speedup, "ratio")
    equal = " ".join(part for part in sentences if " as fast as " in part)
    if " other candidates" not in text and " more" not in text:
        for name, line in lines.items():
            if line.speedup is None or line.row.seconds is None:
                continue
            change = max(abs(math.log(line.speedup)), abs(math.log(line.row.seconds / base_s)))
            assert name in claimed or name in " ".join(undecided) or (name in equal and change <= SMALL)
    for name, (ratio, verb) in claimed.items():
        speedup = lines[name].speedup
        assert speedup is not None
        assert ratio == shown(speedup if verb == "is" else 1 / speedup, "ratio")
        assert (speedup > 1) == (verb == "is")
        pairs = [a / b for a, b in zip(base, lines[name].row.measurement.samples_s, strict=True)]  # type: ignore[union-attr]
        assert quantile(pairs, 0.1) > 1 or quantile(pairs, 0.9) < 1
        change = math.log(lines[name].row.seconds / standard.seconds)  # type: ignore[operator]
        assert abs(change) > NOISE_FLOOR["cpu"]
    for one in rows:
        if one.status in WRONG:
            assert re.search(rf"{one.implementation}\b.*: {one.status}\.|more: {one.status}\.", text), text
    assert not re.search(r"\b[A-Z][a-z]+ [A-Z][a-z]", text)


def test_a_clear_difference_is_claimed_with_its_memory_and_limit() -> None:
    standard, flash = row("standard", 1.82e-3, added=3 * 2**20), row("flash", 1e-3, added=2**20)
    assert about(standard, flash) == "flash is 1.82× faster than standard and uses a third of the memory."
    assert about(standard, row("flash", 3.64e-3)) == "flash takes 2.00× as long as standard."
    assert about(standard, row("flash", 1.8e-3)) == "flash is as fast as standard within the noise."
    work = {"work_flops": 10**8, "work_bytes": 1}  # 0.1 ms at 1 TFLOP/s
    limited = [Row(**{name: getattr(one, name) for name in one.__struct_fields__} | work) for one in (standard, flash)]
    assert about(*limited).endswith(" Both are far from the limit of this machine (at most 10.0% of it).")
    work["work_flops"] = 2 * 10**9
    limited = [Row(**{name: getattr(one, name) for name in one.__struct_fields__} | work) for one in (standard, flash)]
    assert about(*limited).endswith(" flash exceeds its limit (200.0% of it); a note says why.")


def test_the_advice_to_measure_again_is_given_once() -> None:
    undecided = about(row("standard", 1e-3), row("flash", NOISY))
    clear = about(row("standard", 1e-3), row("flash", 5e-3))
    first, second, third = advice_once([clear, undecided, undecided])
    assert (first, second) == (clear, undecided)
    assert undecided == f"{third} Measure again on an idle machine."
    assert advice_once([clear, clear]) == [clear, clear]


def test_the_share_of_a_noisy_row_is_marked_or_left_out() -> None:
    work = {"work_flops": 8 * 10**8, "work_bytes": 1}  # 0.8 ms at 1 TFLOP/s
    samples = ([1e-3] * 10, [0.5e-3, 1e-3, 1e-3, 1e-3, 1.2e-3, 0.8e-3, 1.3e-3, 0.7e-3, 1e-3, 1e-3])
    quiet, noisy = (msgspec.structs.replace(row("flash", times), **work) for times in samples)
    assert about(quiet) == "flash takes 1 ms. flash reaches 80.0% of the limit of this machine."
    assert about(noisy) == (
        "flash takes 1 ms. flash reaches about 80% of the limit of this machine, but its times vary widely."
    )
    assert "limit" not in about(noisy, msgspec.structs.replace(row("standard", samples[1]), **work))
    work["work_flops"] = 9 * 10**7
    far = msgspec.structs.replace(row("flash", samples[0]), **work)
    assert about(far) == "flash takes 1 ms. flash reaches 9.0% of the limit of this machine."


def test_tables_show_a_spread_above_one_as_more_than_100_per_cent() -> None:
    (spread,) = (field for field in METRICS if field.name == "spread")
    wide, narrow = Line(row("a", NOISY), LIMITS), Line(row("a", 1e-3), LIMITS)
    assert (spread.shown(wide), spread.shown(narrow)) == (">100%", "0.0%")
    assert spread.value_of(wide) == wide.spread
    assert wide.spread is not None
    assert wide.spread > 1
    assert as_json([wide])[0]["derived"]["spread"] == wide.spread


def test_the_largest_x_is_compared_and_errors_are_named_for_every_x() -> None:
    rows = [
        row("standard", 1e-3),
        row("flash", 0.0, status="INCORRECT"),
        row("standard", 4e-3, seq_len=128),
        row("flash", 1e-3, seq_len=128),
        row("flex", 0.0, status="OOM", seq_len=128),
        row("cudnn", 0.0, status="n/a", seq_len=128),
    ]
    assert about(*rows, x="seq_len") == (
        "flash: INCORRECT. At 128 tokens, flash is 4.00× faster than standard. flex ran out of memory. "
        "cudnn was not measured, because it needs a GPU."
    )
    assert about(row("a", 0.0, status="FAILED")) == "a: FAILED. No row has a time."


def test_several_reasons_stand_in_the_notes() -> None:
    other = msgspec.structs.replace(row("c", 0.0, status="n/a"), reason="it has no sinks")
    assert about(row("a", 1e-3), row("b", 0.0, status="n/a"), other).endswith("b and c were not measured.")


def test_cases_are_counted() -> None:
    rows = [
        one
        for length, flash_s in ((64, 0.5e-3), (128, 0.25e-3), (256, 1e-3), (512, 2e-3))
        for one in (row("standard", 1e-3, seq_len=length), row("flash", flash_s, seq_len=length))
    ]
    assert about_cases(rows, "standard") == (
        "flash is faster than standard in 2 of 4 cases (2.00× to 4.00×) and slower in 1 (2.00×)."
    )
    assert about_cases(rows[4:6], "standard") == ""
    equal = [row(name, 1e-3, seq_len=length) for length in (1, 2) for name in ("standard", "flash", "b")]
    assert about_cases(equal, "standard") == "Every candidate is as fast as standard within the noise."
    noisy = [
        one for length in (1, 2) for one in (row("standard", NOISY, seq_len=length), row("flash", 1e-3, seq_len=length))
    ]
    assert about_cases(noisy, "standard") == (
        "Not decided: whether flash is faster than standard, because the noise of this run is as large as the "
        "difference. Measure again on an idle machine."
    )


NOISY = [0.2e-3, 8e-3, 3e-3, 0.3e-3, 9e-3, 2.8e-3, 0.1e-3, 7e-3, 3e-3, 2.9e-3]
"""Samples with a median of 2.95 ms and a large spread."""


def test_a_large_difference_within_the_noise_is_not_decided() -> None:
    """The ratios are those of the row: the medians of the pairs."""
    standard, flash = row("standard", NOISY), row("flash", 1e-3)
    assert about(standard, flash) == (
        "Not decided: flash was 2.95× faster than standard, but the noise of this run is as large as that. "
        "Measure again on an idle machine."
    )
    assert about(row("standard", 1e-3), row("flash", NOISY)).startswith("Not decided: flash took 2.95× as long as")
    assert about(standard, flash, row("b", 2e-3)) == (
        "Not decided: the speed-ups of flash (2.95×) and b (1.48×), because the noise of this run is as large as the "
        "differences. Measure again on an idle machine."
    )


def test_a_small_difference_within_a_large_noise_is_not_decided() -> None:
    unstable = [sample * factor for sample, factor in zip(NOISY, (1.02, 0.98) * 5, strict=True)]
    assert about(row("standard", NOISY), row("flash", unstable)) == (
        "Not decided: whether flash is as fast as standard. The noise of this run is too large. "
        "Measure again on an idle machine."
    )
    assert about(row("standard", 1e-3), row("flash", 1.001e-3)) == "flash is as fast as standard within the noise."


def kernel_rows(**times: float) -> list[Row]:
    """A kernel and its reference, which takes 1 ms, for each kernel."""
    return [
        row(name, seconds, kernel=kernel)
        for kernel, kernel_s in times.items()
        for name, seconds in (("kernel", kernel_s), ("reference", 1e-3))
    ]


def test_kernels_are_compared_with_their_references() -> None:
    assert about_kernels(kernel_rows(glu=0.5e-3), "reference") == (
        "glu is faster than its reference in its only case (2.00×)."
    )
    many = kernel_rows(a=0.5e-3, b=0.25e-3, c=1e-3, d=2e-3)
    assert about_kernels(many, "reference") == (
        "A kernel is faster than its reference in 2 of 4 cases (2.00× to 4.00×) and slower in 1 (2.00×). "
        "Slower in at least one case: d."
    )
    wrong = [*many, row("kernel", 0.0, status="INCORRECT", kernel="e")]
    assert about_kernels(wrong, "reference", timed=False) == "e: INCORRECT."


def test_changes_are_told_in_words() -> None:
    before = [row(name, 1e-3, mask="causal") for name in ("flash", "sdpa", "old")]
    after = [row("flash", 1.3e-3, mask="causal"), *before[1:2], row("new", 1e-3, mask="causal")]
    assert about_changes(diff(results(*before), results(*after))) == (
        "1 of 4 rows became worse. flash in attention (64 tokens, causal) takes 1.30× as long (noise can explain at "
        "most 1.11×). 1 row did not change by more than the noise. 1 row is only in the second file. 1 row is only in "
        "the first file."
    )
    broken = [row("flash", 0.0, status="FAILED", mask="causal"), *before[1:]]
    assert "flash in attention (64 tokens, causal) is now FAILED." in about_changes(
        diff(results(*before), results(*broken))
    )
    assert about_changes(diff(results(*before), results(*before))) == (
        "None of 3 rows became worse. 3 rows did not change by more than the noise."
    )
    untimed = [before[0], *(row(name, 0.0, status="n/a", mask="causal") for name in ("sdpa", "old"))]
    assert about_changes(diff(results(*untimed), results(*untimed))) == (
        "None of 3 rows became worse. 1 row did not change by more than the noise. "
        "2 rows have no time in either file (n/a)."
    )


def test_the_slowest_row_is_named_although_its_change_can_be_noise() -> None:
    noisy = [1e-3 * (0.2 + 0.4 * (number % 5)) for number in range(10)]
    after = [row("flash", [2.5 * sample for sample in noisy], mask="causal"), row("sdpa", noisy, mask="causal")]
    before = [row(name, noisy, mask="causal") for name in ("flash", "sdpa")]
    text = about_changes(diff(results(*before), results(*after)))
    assert "The slowest unclear row: flash in attention (64 tokens, causal) takes 2.50× as long." in text
    assert "slowest" not in about_changes(diff(results(*before), results(*before)))


def test_rows_of_two_sessions_are_not_compared() -> None:
    assert comparison(row("a", [1e-3] * 3), row("b", [1e-3] * 4)) is None
