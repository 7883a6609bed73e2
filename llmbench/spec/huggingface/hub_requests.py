"""Requests for the files of a repository of the Hugging Face hub, with one limit of time and one of size.

Each request runs in a thread, because neither the look-up of a host's name nor a slow answer has a time limit of its
own. A thread that is too late is left behind. It ends with its connection or with the program.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from llmbench.errors import CannotRunError, LLMBenchError, SpecError, UnknownNameError, install_hint
from llmbench.printable import printable
from llmbench.spec.reading import MOST_BYTES

__all__ = ["ALL_S", "TIMEOUT_S", "HubRequests", "Part", "Whole"]

TIMEOUT_S = 1.5
"""The longest time in seconds until the hub begins its first answer."""

LATER_S = 10.0
"""The longest time in seconds until the hub begins a later answer."""

ALL_S = 60.0
"""The longest time in seconds for all requests of one object together."""

_DEFAULT_ENDPOINT = "https://huggingface.co"
_ON_THIS_MACHINE = "give the path of a config.json on this machine"
_AS_STORED = {"Accept-Encoding": "identity"}
"""The header that asks for a file as it is stored, because parts of it are asked for by their bytes."""
_MOVED = (301, 302, 303, 307, 308)
"""The statuses with which a server sends a request to another address."""
_MOST_MOVES = 10
MOST_PIECES = 50_000
"""The most pieces in which an answer can arrive. A file of 32 MiB needs about half of them over any network."""
Result = TypeVar("Result")


class Part(NamedTuple):
    """Bytes of a file. size: bytes of the whole file."""

    content: bytes
    size: int


class Whole(NamedTuple):
    """A whole file. commit: the commit that the hub has read it from. Empty: the hub does not say it."""

    content: bytes
    commit: str


class _Answer(NamedTuple):
    """An answer of the hub.

    headers: also those of the answers that sent the request to another address. chunks: the content as it was sent.
    """

    status: int
    headers: dict[str, str]
    chunks: Iterator[bytes]


class HubRequests:
    """The requests for the files of one revision of a repository, which share a limit of time.

    The methods raise an LLMBenchError that says in one sentence why a file cannot be read: SpecError, UnknownNameError
    or CannotRunError.
    """

    def __init__(self, repository: str, revision: str = "main") -> None:
        # Below this level, huggingface_hub logs advice.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self.repository, self.revision = repository, revision
        with _errors_of_setup(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about variables with old names
            import huggingface_hub
            from huggingface_hub import constants, errors, utils

            address, self._errors = _checked(constants.ENDPOINT or _DEFAULT_ENDPOINT), errors
            self.endpoint = _without_account(address)
            self._url = _url(huggingface_hub.hf_hub_url, errors, repository, revision, address)
            self._tools: Any = utils  # it has the functions below in every version, but does not declare them in all
            self._session: Any = self._tools.get_session()
        self._own: dict[str, str] | None = None
        self._exists = revision != "main"  # a commit comes from an earlier answer
        self._last = time.monotonic() + ALL_S

    def whole(self, name: str, *, answer_s: float = LATER_S) -> Whole | None:
        """Return a file of at most MOST_BYTES. None: the revision does not have the file.

        answer_s: the longest time in seconds until the answer begins.
        """

        def read(answer: _Answer) -> Whole | None:
            if answer.status == 404 and (self._exists or answer.headers.get("x-error-code") == "EntryNotFound"):
                return None
            self._expect_success(answer, name)
            if answer.status != 200:
                raise self._failed(answer, name)
            self._exists = True
            content = self._joined(answer.chunks, MOST_BYTES + 1, name)
            if len(content) > MOST_BYTES:
                raise SpecError(f"cannot read {printable(name)}: it has more than {MOST_BYTES:,} bytes")
            return Whole(content, answer.headers.get("x-repo-commit", ""))

        return self._ask(name, read, answer_s)

    def part(self, name: str, first: int, end: int) -> Part:
        """Return the bytes from `first` to before `end` of a file, or to its end. The rest of an answer is not read."""

        def read(answer: _Answer) -> Part:
            if answer.status == 404:
                raise SpecError(f"the repository `{self.repository}` has no {printable(name)}")
            self._expect_success(answer, name)
            place, _, size = answer.headers.get("content-range", "").partition("/")
            if answer.status != 206 or not place.startswith(f"bytes {first}-") or not _is_size(size):
                raise CannotRunError(f"{self.endpoint} does not answer requests for a part of a file")
            wanted = min(end, int(size)) - first
            content = self._joined(answer.chunks, wanted, name)
            if len(content) < wanted:
                raise CannotRunError(
                    f"{self.endpoint} sent only {len(content):,} bytes of the header of {printable(name)}"
                )
            return Part(content, int(size))

        return self._ask(name, read, LATER_S, Range=f"bytes={first}-{end - 1}")

    def _ask(self, name: str, read: Callable[[_Answer], Result], answer_s: float, **headers: str) -> Result:
        """Return what `read` makes of the answer to a request for a file."""
        begun, ended = threading.Event(), threading.Event()
        results: list[Result] = []
        raised: list[Exception] = []

        def run() -> None:
            try:
                with self._open(name, headers) as answer:
                    begun.set()
                    results.append(read(answer))
            except Exception as problem:  # huggingface_hub raises many error classes, also of its HTTP library
                raised.append(problem)
            finally:
                ended.set()
                begun.set()

        threading.Thread(target=run, daemon=True).start()
        if not begun.wait(max(0.0, min(answer_s, self._left_s))):
            raise self._unreached(name)
        if not ended.wait(max(0.0, self._left_s)):
            raise self._late(name)
        if raised:
            problem = raised[0]
            raise (problem if isinstance(problem, LLMBenchError) else self._refusal(name, problem)) from None
        return results[0]

    @property
    def _left_s(self) -> float:
        return self._last - time.monotonic()

    @contextmanager
    def _open(self, name: str, headers: dict[str, str]) -> Iterator[_Answer]:
        """Send a request, and send it again to each address to which an answer sends it.

        Neither HTTP library may follow these answers: both read the whole content of each, which has no limit.
        """
        if self._own is None:
            with _errors_of_setup():  # some versions ask the hub for this
                self._own = self._tools.build_hf_headers() | _AS_STORED
        url, sent, earlier = self._url + quote(name), self._own | headers, dict[str, str]()
        for _ in range(_MOST_MOVES):
            with self._send(url, sent) as answer:
                own = answer.headers
                if answer.status in _MOVED and "location" in own:
                    url, sent = _moved(url, own["location"], sent)
                elif own.get("content-encoding", "identity").lower() != "identity":
                    raise CannotRunError(f"{self.endpoint} sent {_named(name)} compressed, although this was not asked")
                else:
                    yield answer._replace(headers=own | earlier)
                    return
            earlier = own | earlier
        raise CannotRunError(
            f"{self.endpoint} sent the request for {_named(name)} from one address to the next, {_MOST_MOVES} times"
        )

    @contextmanager
    def _send(self, url: str, headers: dict[str, str]) -> Iterator[_Answer]:
        """Send one request to one address."""
        options: dict[str, Any] = {"headers": headers, "timeout": LATER_S}
        if callable(self._session.stream):  # httpx, since version 1 of huggingface_hub
            with self._session.stream("GET", url, follow_redirects=False, **options) as answer:
                yield _Answer(answer.status_code, _lower(answer.headers), answer.iter_raw())
        else:  # requests
            with self._session.get(url, stream=True, allow_redirects=False, **options) as answer:
                chunks = answer.raw.stream(2**14, decode_content=False)
                yield _Answer(answer.status_code, _lower(answer.headers), chunks)

    def _joined(self, chunks: Iterator[bytes], most: int, name: str) -> bytes:
        """Return the first `most` bytes of an answer."""
        content = bytearray()
        for number, chunk in enumerate(chunks, 1):
            content += chunk
            if number > MOST_PIECES:
                raise CannotRunError(f"{self.endpoint} sent {_named(name)} in more than {MOST_PIECES:,} pieces")
            if len(content) >= most:
                break
            if self._left_s < 0:
                raise self._late(name)
        return bytes(content[:most])

    def _expect_success(self, answer: _Answer, name: str) -> None:
        """Raise the error that says why the hub does not send a file."""
        code = answer.headers.get("x-error-code")
        page = f"{self.endpoint}/{self.repository}"
        if code == "GatedRepo" or answer.status == 403:
            raise CannotRunError(
                f"the repository `{self.repository}` is gated: only accounts with a permission can read its files",
                hint=f"ask for the permission at {page}, and then run `hf auth login`",
            )
        if answer.status in (401, 404) and not self._exists:
            raise UnknownNameError(
                f"there is no public repository `{self.repository}` at {self.endpoint}",
                hint="check the name; for a private repository, run `hf auth login` first",
            )
        if answer.status not in (200, 206):
            raise self._failed(answer, name)

    def _failed(self, answer: _Answer, name: str) -> LLMBenchError:
        return CannotRunError(
            f"{self.endpoint} answered the request for {_named(name)} of `{self.repository}` with the status "
            f"{answer.status}",
            hint=f"try again later, or {_ON_THIS_MACHINE}",
        )

    def _refusal(self, name: str, problem: Exception) -> LLMBenchError:
        """Return the error for an error of huggingface_hub or of its HTTP library."""
        if isinstance(problem, self._errors.OfflineModeIsEnabled):
            return CannotRunError(
                f"{_named(name)} of `{self.repository}` is not in the local cache, and HF_HUB_OFFLINE forbids a "
                "download",
                hint=f"unset HF_HUB_OFFLINE, or {_ON_THIS_MACHINE}",
            )
        return self._unreached(name)

    def _unreached(self, name: str) -> LLMBenchError:
        return CannotRunError(
            f"cannot reach {self.endpoint} to read {_named(name)} of `{self.repository}`",
            hint=f"check the network, or {_ON_THIS_MACHINE}",
        )

    def _late(self, name: str) -> LLMBenchError:
        return CannotRunError(
            f"{self.endpoint} did not send {_named(name)} of `{self.repository}` within {ALL_S:g} s",
            hint=f"try again later, or {_ON_THIS_MACHINE}",
        )


@contextmanager
def _errors_of_setup() -> Iterator[None]:
    """Raise CannotRunError if huggingface_hub is missing, or if it cannot be used because of the environment."""
    try:
        yield
    except LLMBenchError:
        raise
    except ImportError:
        raise CannotRunError("models from the Hugging Face hub need the extra `hf`", hint=install_hint("hf")) from None
    except Exception as problem:  # a wrong value of a variable such as HF_HOME or SSL_CERT_FILE
        raise CannotRunError(
            f"huggingface_hub cannot be used: {type(problem).__name__}: {printable(str(problem), most=300)}",
            hint="check the variables of the environment that it reads, such as HF_HOME and HF_ENDPOINT",
        ) from None


def _url(hf_hub_url: Any, errors: Any, repository: str, revision: str, endpoint: str) -> str:
    """Return the address of the files of a repository. Raises SpecError if the name of the repository is impossible."""
    try:
        url: str = hf_hub_url(repository, "FILE", revision=revision, endpoint=endpoint)
    except errors.HFValidationError:
        raise SpecError(
            f"`hf:{repository[:80]}` is not the name of a repository", hint="write hf:organisation/name"
        ) from None
    return url.removesuffix("FILE")


def _checked(endpoint: str) -> str:
    """Return the address of a hub. Raises SpecError if it cannot be one."""
    try:
        parts = urlsplit(endpoint)
        possible = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a wrong port, or a bracket without the other one
        possible = False
    if not possible or not endpoint.isprintable():
        raise SpecError(
            f"HF_ENDPOINT is {printable(endpoint[:80])}, which is no address of a server",
            hint=f"unset HF_ENDPOINT, or write an address such as {_DEFAULT_ENDPOINT}",
        )
    return endpoint


def _without_account(endpoint: str) -> str:
    """Return the address of a hub for messages, without the name and the password of a user."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _moved(url: str, location: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the address to which an answer sends a request, and the headers for it.

    Another server does not get the token of the user.
    """
    there = urljoin(url, location)
    old, new = urlsplit(url), urlsplit(there)
    if new.scheme not in ("http", "https") or not new.hostname:
        raise CannotRunError(f"the hub sends a request to {printable(location, most=80)}, which is no address")
    if (old.scheme, old.netloc) != (new.scheme, new.netloc):
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return there, headers


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _named(name: str) -> str:
    return "the config" if name == "config.json" else printable(name)
