"""The changes of one or two settings with which a model fits.

Every proposal is checked with a complete answer, so a change that is named suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llmbench.errors import LLMBenchError
from llmbench.sizing.serving.fit import Fit, Question, Sizer, best_fit
from llmbench.sizing.serving.proposals import (
    CUT,
    FILES,
    GPUS,
    LARGE_CUT,
    MORE_GPUS,
    OTHER_FILES,
    Proposal,
    Proposer,
    gguf_weights,
    proposers,
)


class Change(NamedTuple):
    """A change of one or two settings with which the model fits.

    options: the options with their new values. what: what changes, for people.
    orders: the orders of its settings. factor: the product of the factors of its settings.
    fit: the answer with the change.
    """

    options: dict[str, str]
    what: str
    orders: tuple[int, ...]
    factor: float
    fit: Fit

    @property
    def option(self) -> str:
        """The options as the user types them: `--gpus 8 --kv-dtype fp8`."""
        return " ".join(f"{name} {value}" for name, value in self.options.items())

    @property
    def order(self) -> int:
        """The largest of the orders of its settings."""
        return max(self.orders)

    @property
    def more_gpus(self) -> bool:
        """Whether the change needs more GPUs."""
        return MORE_GPUS in self.orders

    @property
    def other_files(self) -> bool:
        """Whether the change needs other files than the published ones."""
        return OTHER_FILES in self.orders


def changes(sizer: Sizer, fit: Fit, *, own_layout: bool = False, pairs: bool = True) -> list[Change]:
    """Return the changes of one setting with which the model fits, the nearest one first.

    The order is FREE, FORMAT, CONVERTED, CUT, OTHER_FILES, MORE_GPUS, LARGE_CUT. Within one of them, the nearest change
    has the smallest factor: half as many users are as near as half the bytes of the cache. Of each setting, only the
    nearest change is returned. If no single change on the same GPUs suffices, or only a LARGE_CUT, pairs of changes on
    the same GPUs are added, with a CUT only if no other pair suffices. If more GPUs do not suffice alone either, pairs
    with more GPUs are added.

    own_layout: whether the user gave the layout. If not, llmbench chooses one for each number of GPUs.
    pairs: whether to try changes of two settings.
    """
    engine = fit.question.engine.spec
    if engine.vendors and fit.question.device.vendor not in engine.vendors:
        return []
    each_setting = proposers(own_layout)

    def answer(question: Question) -> Fit:
        return sizer.fit(question) if own_layout else best_fit(sizer, question, question.layout.num_gpus)

    def tried(before: Fit, proposer: Proposer) -> list[Change]:
        return _tried(sizer, before, proposer, answer, fit.question)

    singles = [(proposer, tried(fit, proposer)) for proposer in each_setting]
    found = [change for _, each in singles for change in each[-1:] if change.fit.fits]
    if pairs and not any(change.order < MORE_GPUS for change in found):
        same = list(_pairs([(proposer, each) for proposer, each in singles if proposer not in GPUS], tried))
        found += [pair for pair in same if CUT not in pair.orders] or same
    if pairs and all(change.order == LARGE_CUT for change in found):
        found += [pair for pair in _pairs(singles, tried) if pair.more_gpus]
    return sorted(found, key=lambda change: (change.order, len(change.options), change.factor))


def _pairs(
    singles: list[tuple[Proposer, list[Change]]], tried: Callable[[Fit, Proposer], list[Change]]
) -> Iterator[Change]:
    """Yield the changes of two settings that suffice, of which neither suffices alone. Neither is a LARGE_CUT.

    Each number of GPUs and each format of the weights may be the first of two. Of the other settings, only the largest
    change may be.

    singles: the changes of one setting by their proposer.
    """
    for place, (first, each) in enumerate(singles):
        nearest: dict[tuple[str, str], Change] = {}  # by the second setting and its value
        for change in each if first in (*GPUS, *FILES) else each[-1:]:
            if change.fit.fits or change.order == LARGE_CUT:
                continue
            for proposer, _ in singles[place + 1 :]:
                if first in FILES and proposer in FILES:
                    continue
                for second in tried(change.fit, proposer)[-1:]:
                    if second.fit.fits and second.order < LARGE_CUT:
                        nearest.setdefault(list(second.options.items())[-1], _pair(change, second))
        yield from nearest.values()


def _pair(first: Change, second: Change) -> Change:
    """Return the change of two settings, of which the first one alone does not suffice."""
    same = second.options.keys() == first.options.keys()
    return Change(
        first.options | second.options,
        second.what if same else f"{first.what}, and {second.what}",
        (*first.orders, *second.orders),
        first.factor * second.factor,
        second.fit,
    )


def _tried(
    sizer: Sizer, fit: Fit, proposer: Proposer, answer: Callable[[Question], Fit], asked: Question
) -> list[Change]:
    """Return the proposals for one setting with their answers, up to the first one that suffices.

    asked: the question before all changes.
    """

    def change(proposal: Proposal) -> Change | None:
        try:
            changed = answer(proposal.question)
        except LLMBenchError:
            return None
        before, after = proposal.setting(fit), proposal.setting(changed)
        factor = max(before, after) / min(before, after)
        return Change(dict([proposal.option]), proposal.what, (proposal.order,), factor, changed)

    if proposer is gguf_weights:
        return _halved(list(proposer(sizer, fit, asked)), change)
    found = []
    for proposal in proposer(sizer, fit, asked):
        if (own := change(proposal)) is not None:
            found.append(own)
            if own.fit.fits:
                break
    return found


def _halved(proposals: list[Proposal], change: Callable[[Proposal], Change | None]) -> list[Change]:
    """Return the first of many proposals that suffices, or else the last one. The memory falls from each to the next.

    Each step halves the number of proposals, because an answer for a GGUF recipe takes long.
    """
    found = change(proposals[-1]) if proposals else None
    if found is None or not found.fit.fits:
        return [] if found is None else [found]
    low, high = -1, len(proposals) - 1  # the proposal `high` suffices
    while high - low > 1:
        middle = (low + high) // 2
        own = change(proposals[middle])
        if own is not None and own.fit.fits:
            found, high = own, middle
        else:
            low = middle
    return [found]
