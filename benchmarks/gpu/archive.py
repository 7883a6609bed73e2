"""The archive of a run: one .tar.gz file with the results, the table and the output of the child processes.

The archive is at most `MOST_BYTES` large, because a machine that is lent may return only small files.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.results import Results, Row, read

__all__ = ["MOST_BYTES", "pack", "read_results", "unpack"]

MOST_BYTES = 16 * 2**20
KEPT_SAMPLES = 10
"""The number of samples per row that stay when an archive would be too large."""


def pack(target: Path, files: Iterable[Path], *, most_bytes: int = MOST_BYTES) -> list[str]:
    """Write an archive of `files` and return notes about omissions, which the archive contains too.

    If the archive is larger than `most_bytes`, only the first `KEPT_SAMPLES` raw samples of each row stay. If it is
    still too large, the logs are left out too.
    """
    files = [file for file in files if file.is_file() and file.stat().st_size]
    shorter = f"raw samples: only the first {KEPT_SAMPLES} of each row are in this archive"
    attempts: list[tuple[list[str], dict[str, bytes]]] = [([], {file.name: file.read_bytes() for file in files})]
    short = {name: _shortened(text) if name.endswith(".jsonl") else text for name, text in attempts[0][1].items()}
    attempts.append(([shorter], short))
    results = {name: text for name, text in short.items() if not name.endswith(".log")}
    attempts.append(([shorter, "the logs of the child processes are not in this archive"], results))
    for notes, contents in attempts:
        data = _packed(contents | ({"notes.txt": "\n".join(notes).encode()} if notes else {}))
        if len(data) <= most_bytes:
            target.write_bytes(data)
            return notes
    raise LLMBenchError(
        f"the archive {target} would be larger than {most_bytes:,} bytes", hint="use the result file itself"
    )


def _packed(contents: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return data.getvalue()


def _shortened(text: bytes) -> bytes:
    """Return the lines of a result file with at most `KEPT_SAMPLES` samples per row. A line that is no row stays as it
    is."""
    lines = []
    for line in text.splitlines():
        try:
            row = msgspec.json.decode(line, type=Row)
        except msgspec.DecodeError:
            lines.append(line)
            continue
        if row.measurement is not None and row.measurement.n > KEPT_SAMPLES:
            note = f"only the first {KEPT_SAMPLES} of {row.measurement.n} samples are kept"
            measurement = msgspec.structs.replace(
                row.measurement,
                samples_s=row.measurement.samples_s[:KEPT_SAMPLES],
                notes=(*row.measurement.notes, note),
            )
            line = msgspec.json.encode(msgspec.structs.replace(row, measurement=measurement))
        lines.append(line)
    return b"".join(line + b"\n" for line in lines)


def unpack(source: Path, folder: Path) -> list[Path]:
    """Extract an archive into a folder, and return the files. Existing files are replaced."""
    try:
        with tarfile.open(source) as archive:
            names = [member.name for member in archive.getmembers() if member.isfile()]
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as problem:
        raise LLMBenchError(f"cannot read the archive {source}: {problem}") from None
    return [folder / name for name in names]


def read_results(path: Path) -> Results:
    """Read a result file, or the result file in an archive."""
    if path.suffix == ".jsonl":
        return read(path)
    with tempfile.TemporaryDirectory() as name:
        files = [file for file in unpack(path, Path(name)) if file.suffix == ".jsonl"]
        if len(files) != 1:
            raise LLMBenchError(f"{path} contains {len(files)} result files (.jsonl); it must contain one")
        return read(files[0])
