"""Headers of the safetensors files of a repository of the Hugging Face hub. Range requests read only the headers.

The index names the files. The first request of a file asks for its first bytes, which usually contain the whole header.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from llmbench.errors import LLMBenchError, SpecError
from llmbench.spec.huggingface.hub_requests import TIMEOUT_S, HubRequests
from llmbench.spec.weights.safetensors import (
    INDEX,
    SINGLE,
    FileTensor,
    checked_header,
    checked_index,
    checked_length,
    merged,
)

__all__ = ["headers"]

FIRST_BYTES = 100_000
"""Bytes of the first request of a file. huggingface_hub asks for the same number, which suffices for most headers."""

MOST_FILES = 1024
"""The largest number of files of a checkpoint. The largest real checkpoints have less than a third of it."""

_AT_ONCE = 8


@cache
def headers(place: str) -> dict[str, FileTensor] | LLMBenchError:
    """Return the tensors of a repository by name, or the error that says why they cannot be read.

    place: `organisation/name@revision`.
    """
    try:
        return _headers(*place.split("@"))
    except LLMBenchError as problem:
        return problem


def _headers(repository: str, revision: str) -> dict[str, FileTensor]:
    hub = HubRequests(repository, revision)
    index = hub.whole(INDEX, answer_s=2 * TIMEOUT_S)
    files = [SINGLE]  # without an index, the repository has at most one file
    if index is not None:
        files = sorted(set(checked_index(index.content, f"{repository}/{INDEX}").weight_map.values()))
    if len(files) > MOST_FILES:
        raise SpecError(f"{INDEX} names {len(files):,} files, and llmbench reads the headers of at most {MOST_FILES:,}")
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return merged(zip(files, pool.map(partial(_header, hub), files), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error, the other files are not asked for


def _header(hub: HubRequests, name: str) -> dict[str, FileTensor]:
    """Return the tensors of a file."""
    where = f"{hub.repository}/{name}"
    first = hub.part(name, 0, FIRST_BYTES)
    begin = 8 + checked_length(int.from_bytes(first.content[:8], "little"), first.size, where)
    content = first.content[:begin]
    if len(content) < begin:
        content += hub.part(name, len(content), begin).content
    return checked_header(content[8:], first.size, where)
