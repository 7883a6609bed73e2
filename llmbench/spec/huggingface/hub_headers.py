"""Headers of the safetensors files of a repository of the Hugging Face hub. Range requests read only the headers.

The index names the files. The first request of a file asks for its first bytes, which usually contain the whole header.
Several threads read headers at the same time. One thread decodes them, so it stops at the first faulty one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from typing import NamedTuple

from llmbench.errors import LLMBenchError, SpecError
from llmbench.spec.huggingface.hub_requests import TIMEOUT_S, HubRequests
from llmbench.spec.weights.safetensors import (
    INDEX,
    MOST_TENSORS,
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

MOST_HEADERS = 128 * 2**20
"""The largest number of bytes of all headers. Those of 400,000 tensors have about half of it."""

_AT_ONCE = 8


class _Header(NamedTuple):
    """The JSON text of a header. size: bytes of its file."""

    text: bytes
    size: int


class _Headers:
    """The headers of several files. Threads read them in the order of the files.

    The threads are daemons: after an error, the program ends without them.
    """

    def __init__(self, hub: HubRequests, files: Sequence[str]) -> None:
        self._hub, self._left = hub, MOST_HEADERS
        self._found = deque((file, Future[_Header]()) for file in files)
        self._waiting, self._lock = self._found.copy(), threading.Lock()
        for _ in range(min(_AT_ONCE, len(files))):
            threading.Thread(target=self._work, daemon=True).start()

    def __iter__(self) -> Iterator[tuple[str, dict[str, FileTensor]]]:
        """Yield each file with its tensors."""
        tensors = 0
        while self._found:
            file, future = self._found.popleft()
            header = future.result()
            tensors += header.text.count(b'"dtype"')
            if tensors > MOST_TENSORS:  # known before the header is decoded, which takes seconds
                raise SpecError(f"the files of {self._hub.repository} have more than {MOST_TENSORS:,} tensors")
            yield file, checked_header(header.text, header.size, f"{self._hub.repository}/{file}")

    def stop(self) -> None:
        """Let no thread ask for another file."""
        self._waiting.clear()

    def _work(self) -> None:
        while True:
            try:
                file, future = self._waiting.popleft()
            except IndexError:  # another thread has taken the last file
                return
            try:
                future.set_result(self._read(file))
            except Exception as problem:
                future.set_exception(problem)

    def _read(self, file: str) -> _Header:
        first = self._hub.part(file, 0, FIRST_BYTES)
        length = int.from_bytes(first.content[:8], "little")
        end = 8 + checked_length(length, first.size, f"{self._hub.repository}/{file}")
        with self._lock:
            self._left -= length
            if self._left < 0:
                raise SpecError(f"the headers of {self._hub.repository} have more than {MOST_HEADERS:,} bytes")
        content = first.content[:end]
        if len(content) < end:
            content += self._hub.part(file, len(content), end).content
        return _Header(content[8:], first.size)


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
    found = _Headers(hub, files)
    try:
        return merged(found)
    finally:
        found.stop()
