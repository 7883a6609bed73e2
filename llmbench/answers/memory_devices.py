"""The devices on the screen of `llmbench memory`: the answer for each device that the user named."""

from __future__ import annotations

import msgspec

from llmbench.answers.memory_row import FIELDS, Sized, Verdict
from llmbench.report.document import Block, table
from llmbench.report.fields import Field
from llmbench.report.units import plural, size, word_list
from llmbench.sizing.devices import HEADROOM, SPLITS, DeviceFit
from llmbench.sizing.memory import PARTS, Memory
from llmbench.sizing.workload import Layout

IN_SENTENCES = 2
"""The largest number of named devices that each have a sentence. More devices have a table."""

DEVICES_LINE = "columns of devices: whether it fits, and how much of its memory is filled"
"""The line that explains `device_columns`."""


def on_devices(row: Sized) -> str:
    """Return the answer for the devices that the user named. It continues a sentence."""
    fits = [verdict.fit for verdict in row.verdicts]
    if len(fits) <= IN_SENTENCES:
        return "".join(f"\n{_sentence(verdict, row.memory)}" for verdict in row.verdicts)
    devices = [f"{fit.device} ({fit.filled:.0%} filled)" for fit in fits if fit.fits]
    if not devices:
        return f" It fits on none of the {len(fits)} devices."
    if len(devices) == len(fits):
        return f" It fits on all {len(fits)} devices: {word_list(devices)}."
    return f" It fits on {len(devices)} of {len(fits)} devices: {word_list(devices)}."


def devices_block(row: Sized) -> list[Block]:
    """Return a table with the devices that the user named, if they are too many for sentences."""
    if not row.asked or len(row.verdicts) <= IN_SENTENCES:
        return []

    def exceeds(verdict: Verdict) -> int | None:
        return None if verdict.fit.missing_format is not None else verdict.fit.exceeds_bytes or None

    columns: tuple[Field[Verdict], ...] = (
        Field("device", "device", value=lambda verdict: verdict.fit.device),
        Field("fits", "fits", value=lambda verdict: verdict.fit.fits),
        Field("filled", "filled", "percent", value=lambda verdict: verdict.fit.filled),
        Field("usable_bytes", "usable", "gib", value=lambda verdict: verdict.fit.usable_bytes),
        Field("exceeds_bytes", "exceeded by", "gib", value=exceeds),
        Field("advice", "what suffices", value=lambda verdict: _advice(verdict, row.memory), wraps=True),
    )
    usable = f"usable: {1 - HEADROOM:.0%} of the memory of the device. filled: needed / memory of the device"
    return [Block(headline="devices", table=table(columns, row.verdicts), lines=[usable])]


def in_cases(rows: list[Sized]) -> str:
    """Return a sentence that says in how many of the cases each named device suffices."""
    first = rows[0]
    counts = [sum(row.verdicts[place].fit.fits for row in rows) for place in range(len(first.verdicts))]
    devices = [f"on {verdict.fit.device} in {count}" for verdict, count in zip(first.verdicts, counts, strict=True)]
    devices[0] += f" of {plural(len(rows), 'case')}"
    return f"{first.spec.name} fits {word_list(devices)}."


def device_columns(first: Sized) -> list[Field[Sized]]:
    """Return the columns of each device that the user named, or a column with the smallest device that suffices."""
    every = next(field for field in FIELDS if field.name == "fits_on")
    if not first.asked:
        return [
            Field("smallest", "smallest device", value=lambda row: next(iter(row.fits_on), "none"), in_json=False),
            msgspec.structs.replace(every, heading="all devices that fit", spare=len(PARTS) + 3),
        ]

    def columns(place: int) -> tuple[Field[Sized], Field[Sized]]:
        """Return the verdict, which the table shows as `yes, 60%`, and the share of the memory, for CSV."""

        def fit(row: Sized) -> DeviceFit:
            return row.verdicts[place].fit

        def text(row: Sized) -> str:
            missing = fit(row).missing_format
            return f"no {missing}" if missing else f"{'yes' if fit(row).fits else 'no'}, {fit(row).filled:,.0%}"

        name = fit(first).device
        return (
            Field(f"{name}.fits", value=lambda row: fit(row).fits, in_json=False),
            Field(f"{name}.filled", name, "percent", lambda row: fit(row).filled, text, in_json=False),
        )

    return [*(column for place in range(len(first.verdicts)) for column in columns(place)), every]


def _sentence(verdict: Verdict, memory: Memory) -> str:
    """Return the answer for one device that the user named. `memory`: that of the run."""
    fit = verdict.fit
    total = f"the {size(fit.memory_bytes)} {fit.memory_from}"
    if fit.fits:
        return f"{fit.device}: yes. It fills {fit.filled:.0%} of {total}."
    usable = f"the usable {size(fit.usable_bytes)} ({1 - HEADROOM:.0%} of {total})"
    exceeds = "" if fit.missing_format else f"It exceeds {usable} by {size(fit.exceeds_bytes)}."
    return " ".join(filter(None, [f"{fit.device}: no.", exceeds, _advice(verdict, memory)]))


def _advice(verdict: Verdict, memory: Memory) -> str:
    """Return what suffices instead of one device, or why nothing does. It is empty if the device fits."""
    fit = verdict.fit
    if fit.missing_format is not None:
        return f"Its matrix units do not compute {fit.missing_format}."
    if fit.fits:
        return ""
    several = memory.layout.num_gpus > 1
    advice = []
    if verdict.changes:
        fitting = (
            f"{change.option} ({size(change.memory.needed_bytes)}{' per GPU' if several else ''})"
            for change in verdict.changes
        )
        advice.append(f"{'It fits' if several else 'One suffices'} with {', or '.join(fitting)}.")
    if verdict.split is not None:
        option, split = verdict.split
        advice.append(f"{split.layout.num_gpus} of them suffice with {option}: {size(split.needed_bytes)} per GPU.")
    if advice:
        return " ".join(advice)
    if several:
        serving = memory.phase == "inference"
        others = (
            "Sequence and tensor parallelism, ZeRO, recomputation and smaller batches do not suffice on as many GPUs."
        )
        return "" if serving else others
    recomputed = ", also with full recomputation" if memory.phase == "train" else ""
    advice.append(f"No layout from {SPLITS[memory.phase][0]} to {SPLITS[memory.phase][-1]} suffices{recomputed}.")
    if memory.phase == "train":
        advice.append(_too_large(memory, fit.usable_bytes))
    return " ".join(advice)


def _too_large(memory: Memory, usable_bytes: int) -> str:
    """Return which part of a training step is too large for the devices, in every layout of SPLITS."""
    gpus = Layout.parse(SPLITS["train"][-1]).num_gpus
    states = sum(memory.full_bytes[part] for part in ("weights", "gradients", "optimizer")) / gpus
    if states > usable_bytes:
        return f"Weights, gradients and optimizer states alone need {size(states)} on each of {gpus} GPUs."
    parts = memory.full_bytes["activations"] + memory.parts_bytes["logits"]  # a layout divides everything else
    return f"Activations and logits need {size(parts)}: a smaller --seq reduces them."
