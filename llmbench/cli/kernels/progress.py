"""The progress of a long `llmbench kernels` command on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def with_progress(
    work: Iterable[T], activity: str, part_of: Callable[[T], Any] | None = None, total: int | None = None
) -> Iterator[T]:
    """Yield the items of `work`. If stderr is a terminal, show the number of finished parts and the time there.

    part_of: the part of the work to which an item belongs. None: each item is a part. total: number of parts, from
        which the remaining time is estimated.
    """
    import sys
    from time import monotonic

    if not sys.stderr.isatty():
        yield from work
        return
    from rich.console import Console

    start, parts = monotonic(), set()
    of_all = f" of {total} shapes" if total else ""
    with Console(stderr=True).status(f"{activity}: 0{of_all or ' done'}") as status:
        for number, item in enumerate(work):
            parts.add(number if part_of is None else part_of(item))
            elapsed = monotonic() - start
            left = f", about {elapsed / len(parts) * (total - len(parts)):.0f} s left" if total else ""
            status.update(f"{activity}: {len(parts)}{of_all or ' done'} in {elapsed:.0f} s{left}")
            yield item
