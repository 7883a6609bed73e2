"""Headers of the safetensors files of a repository of the Hugging Face hub. Range requests read only the headers.

The index names the files. The first request of a file asks for its first bytes, which usually contain the whole header.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.printable import printable
from llmbench.spec.huggingface.hub import TIMEOUT_S, refusal, within
from llmbench.spec.reading import MOST_BYTES
from llmbench.spec.weights.safetensors import (
    INDEX,
    SINGLE,
    FileTensor,
    Index,
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

ALL_S = 60.0
"""The longest time in seconds for all requests together."""

_AT_ONCE = 8
_MISSING = 404


class _Part(NamedTuple):
    """Bytes of a file. size: bytes of the whole file."""

    content: bytes
    size: int


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
    hub = _Hub(repository, revision)
    index = hub.index()
    files = [SINGLE] if index is None else sorted(set(index.weight_map.values()))
    if len(files) > MOST_FILES:
        raise SpecError(f"{INDEX} names {len(files):,} files, and llmbench reads the headers of at most {MOST_FILES:,}")
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return merged(zip(files, pool.map(hub.header, files), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error, the other files are not asked for


class _Hub:
    """The requests for the files of one revision of a repository."""

    def __init__(self, repository: str, revision: str) -> None:
        import huggingface_hub
        from huggingface_hub import constants, errors, utils

        tools: Any = utils  # it has both functions in every version, but does not declare them in all
        self.repository, self.revision = repository, revision
        self.errors, self.endpoint = errors, constants.ENDPOINT
        self.url_of = huggingface_hub.hf_hub_url
        self.sent = {**tools.build_hf_headers(), "Accept-Encoding": "identity"}  # a range of the file as it is stored
        self.session: Any = tools.get_session()
        self.last = time.monotonic() + ALL_S

    def index(self) -> Index | None:
        """Return the index. None: the repository has no index, so it has at most one file."""
        found: list[bytes | None] = []
        self._answered(INDEX, lambda: within(2 * TIMEOUT_S, lambda: found.append(self._whole(INDEX))))
        return None if found[0] is None else checked_index(found[0], f"{self.repository}/{INDEX}")

    def header(self, name: str) -> dict[str, FileTensor]:
        """Return the tensors of a file."""
        where = f"{self.repository}/{name}"
        first = self._answered(name, lambda: self._range(name, 0, FIRST_BYTES))
        begin = 8 + checked_length(int.from_bytes(first.content[:8], "little"), first.size, where)
        content = first.content[:begin]
        if len(content) < begin:
            content += self._answered(name, lambda: self._range(name, len(content), begin)).content
        return checked_header(content[8:], first.size, where)

    def _answered(self, name: str, request: Any) -> Any:
        """Return the result of a request. Raise the error that says in one sentence why there is none."""
        try:
            return request()
        except LLMBenchError:
            raise
        except Exception as problem:  # huggingface_hub raises many error classes, also of its HTTP library
            raise refusal(self.repository, problem, self.errors, self.endpoint, name) from None

    def _whole(self, name: str) -> bytes | None:
        """Return the content of a small file. None: the repository does not have it."""
        with self._get(name) as (status, _, chunks):
            if status == _MISSING:
                return None
            self._refuse(status, name)
            return self._joined(chunks, MOST_BYTES, name)

    def _range(self, name: str, first: int, end: int) -> _Part:
        """Return the bytes from `first` to before `end` of a file, or to its end. The rest of an answer is not read."""
        with self._get(name, Range=f"bytes={first}-{end - 1}") as (status, said, chunks):
            if status == _MISSING:
                raise SpecError(f"the repository `{self.repository}` has no {printable(name)}")
            self._refuse(status, name)
            place, _, size = said.get("Content-Range", "").partition("/")
            if status != 206 or not place.startswith(f"bytes {first}-") or not size.isdigit():
                raise CannotRunError(f"{self.endpoint} does not answer requests for a part of a file")
            wanted = min(end, int(size)) - first
            content = self._joined(chunks, wanted, name, whole=False)
        if len(content) < wanted:
            raise CannotRunError(f"{self.endpoint} sent only {len(content):,} bytes of the header of {printable(name)}")
        return _Part(content, int(size))

    def _refuse(self, status: int, name: str) -> None:
        if status >= 300:
            raise _StatusError(status)

    def _joined(self, chunks: Iterator[bytes], most: int, name: str, *, whole: bool = True) -> bytes:
        """Return the bytes of an answer, up to `most`. whole: whether a longer answer is refused."""
        content = bytearray()
        for chunk in chunks:
            content += chunk
            if time.monotonic() > self.last:
                raise CannotRunError(f"{self.endpoint} did not send the headers within {ALL_S:.0f} s")
            if len(content) >= most:
                break
        if whole and len(content) > most:
            raise SpecError(f"cannot read {printable(name)}: it has more than {most:,} bytes")
        return bytes(content[:most])

    @contextmanager
    def _get(self, name: str, **more: str) -> Iterator[tuple[int, Any, Iterator[bytes]]]:
        """Open the answer to one request: its status, its headers and its content. Both libraries leave out the token
        of the user if the hub sends the request to another server."""
        url = self.url_of(self.repository, name, revision=self.revision)
        options: dict[str, Any] = {"headers": {**self.sent, **more}, "timeout": 10}
        if callable(self.session.stream):  # httpx, since version 1 of huggingface_hub
            with self.session.stream("GET", url, follow_redirects=True, **options) as answer:
                yield answer.status_code, answer.headers, answer.iter_bytes(2**14)
        else:  # requests
            with self.session.get(url, stream=True, **options) as answer:
                yield answer.status_code, answer.headers, answer.iter_content(2**14)


class _StatusError(Exception):
    """An answer that is no success. `response` has the form that huggingface_hub's errors have."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = type("Response", (), {"status_code": status})
