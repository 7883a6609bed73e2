"""Give damaged input to every reader of files and options, and report each answer that is not an answer to a user.

    python tools/fuzz_readers.py --seconds 60 --seed 0
    python tools/fuzz_readers.py --seconds 60 --seed 0 --reader config

The input of a try is a valid input with one to three random changes. A try fails if the reader raises another exception
than LLMBenchError, needs more than 5 seconds of CPU time, or gives a message of more than 4,001 characters. The tool
prints the number of tries and the failures of each reader. The exit code is 1 if there is a failure. The seed decides
the order of the tries. The time decides how many of them are run.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmbench.errors import MOST_CHARACTERS, LLMBenchError

MOST_S = 5.0
"""The most CPU time of one try, in seconds."""

RESULTS = Path(__file__).resolve().parent.parent / "tests" / "measure" / "data" / "results-1.jsonl"

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    0.5,
    -0.0,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**399,
    -(10**399),
    "",
    "x",
    "9" * 400,
    "x" * 100_000,
    "\ud800",
    "\x1b[2J\x00",
    "../../../etc/passwd",
    "x/" * 3000,
    [],
    {},
    [[]],
    [None],
    [10**399, "x"],
    {"": []},
    {"kind": "x"},
    {"model_type": "llama"},
)
"""The values that replace a value of a valid input."""


class TooLong(BaseException):
    """A try needs more than `MOST_S` of CPU time. BaseException: no reader may catch it."""


class Reader(NamedTuple):
    """What is tried. `inputs`: random valid inputs, changed. `read`: read one of them, as a command does."""

    damaged: Callable[[random.Random], bytes]
    read: Callable[[Path], object]


def nested(depth: int, value: Any) -> Any:
    """Return a value inside lists or objects that are nested `depth` levels deep."""
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


def changed(tree: Any, rng: random.Random) -> Any:
    """Return plain data with one value replaced, removed, repeated or renamed, at a random position."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return nested(rng.randrange(300), tree) if rng.random() < 0.05 else rng.choice(VALUES)
    copy = tree.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    what = rng.random()
    if what < 0.85:
        copy[key] = changed(copy[key], rng)
    elif what < 0.92:
        del copy[key]
    elif isinstance(copy, dict):
        copy[rng.choice(["", "x", "kind", "x" * 10_000, rng.choice(list(copy))])] = copy[key]
    else:
        copy *= rng.choice([2, 100])
    return copy


def mutated(tree: Any, rng: random.Random) -> Any:
    """Return plain data with one to three changes."""
    for _ in range(rng.randint(1, 3)):
        tree = changed(tree, rng)
    return tree


def broken(text: bytes, rng: random.Random) -> bytes:
    """Return the text, sometimes with bytes that are flipped, removed, repeated or nested deeply."""
    at = rng.randrange(len(text) + 1)
    match rng.randrange(24):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        case 2:
            end = rng.randint(at, min(len(text), at + 200))
            return text[:at] + text[at:end] * rng.choice([0, 2, 50]) + text[end:]
        case 3:
            return text[:at] + rng.choice([b"[", b'{"x":', b"(", b"9", b"\xff", b"\x00", b'"']) * 100_000 + text[at:]
        case _:
            return text


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def as_toml(value: Any) -> str:
    """Return plain data as a value of TOML in one line. TOML has no null: it becomes the word `none`."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(str(key))} = {as_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "none" if value is None else json.dumps(value)


def sized(spec: Any) -> None:
    """Compute the figures of an accepted spec, and write the spec."""
    import llmbench
    from llmbench.spec.files import write_spec

    write_spec(spec).encode()
    repr(llmbench.params(spec))
    repr(llmbench.kv_cache(spec, seq=1024))
    repr(llmbench.memory(spec, seq=1024))


def config_reader() -> Reader:
    """Configs with the defaults of every class of transformers."""
    from llmbench.spec.huggingface import load_config
    from llmbench.spec.huggingface.facts import facts

    configs = [{"model_type": name, **record["defaults"]} for name, record in facts().items()]
    return Reader(
        lambda rng: broken(as_json(mutated(rng.choice(configs), rng)), rng), lambda path: sized(load_config(path))
    )


def spec_reader() -> Reader:
    """The bundled specs."""
    from llmbench.spec.catalog import bundled_models, model_text
    from llmbench.spec.files import read_spec

    def damaged(rng: random.Random) -> bytes:
        tree = mutated(tomllib.loads(model_text(rng.choice(bundled_models()))), rng)
        lines = [f"{json.dumps(str(key))} = {as_toml(value)}" for key, value in dict(tree or {}).items()]
        return broken("\n".join(lines).encode("utf-8", "surrogatepass"), rng)

    def safe(rng: random.Random) -> bytes:
        while True:
            try:
                return damaged(rng)
            except (TypeError, ValueError):  # the whole tree was replaced by a value
                continue

    return Reader(safe, lambda path: sized(read_spec(path)))


def set_reader() -> Reader:
    """Assignments of the option --set to the fields of bundled models."""
    from llmbench.spec.catalog import bundled_models, load_bundled
    from llmbench.spec.override import override, parse_assignments
    from llmbench.spec.schema import plain

    def damaged(rng: random.Random) -> bytes:
        name = rng.choice(bundled_models())
        items = []
        for _ in range(rng.randint(1, 3)):
            node, path = plain(load_bundled(name)), []
            while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.9):
                key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
                node = node[key]
                path.append(rng.choice([str(key)] * 9 + ["*", "kind", "x"]))
            items.append(f"{'.'.join(path[rng.randrange(len(path)) :])}={as_toml(changed(node, rng))}")
        return broken("\0".join([name, *items]).encode("utf-8", "surrogatepass"), rng)

    def read(path: Path) -> None:
        name, *items = path.read_bytes().decode("utf-8", "replace").split("\0")
        if name in bundled_models():
            sized(override(load_bundled(name), parse_assignments(items)))

    return Reader(damaged, read)


def name_reader() -> Reader:
    """Names and paths of models."""
    from llmbench.spec.catalog import find_model

    names = ["llama2-7b", "x/config.json", "x.toml", "/dev/zero", "~/x.json", "org/model", ".", "/", "http://x/y.json"]

    def damaged(rng: random.Random) -> bytes:
        pieces = rng.choices([*names, "/", "..", "x" * 300, "\0", "🦙", "\ud800", ""], k=rng.randint(1, 4))
        return ("".join(pieces) * rng.choice([1, 1, 1, 2000])).encode("utf-8", "surrogatepass")

    return Reader(damaged, lambda path: sized(find_model(path.read_bytes().decode("utf-8", "surrogateescape"))))


def results_reader() -> Reader:
    """A result file, read by `diff` and by `bench --resume`."""
    import msgspec
    import torch

    from llmbench.bench.experiments import find_experiment
    from llmbench.bench.experiments.experiment import Ask
    from llmbench.cli.bench_document import Measured, document
    from llmbench.measure.regressions import diff
    from llmbench.measure.results import read
    from llmbench.measure.store import Store
    from llmbench.report.render import Format, render

    whole = read(RESULTS)
    header = whole.headers[0]
    references = header.reference_measurements
    assert references is not None
    lines = [json.loads(msgspec.json.encode(line)) for line in (header, *whole.rows)]
    known = set(whole.by_key())
    experiment, ask = find_experiment("norms"), Ask(quick=True, device=torch.device("cpu"), dtype="fp32")

    def damaged(rng: random.Random) -> bytes:
        copy = list(lines)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(copy))
            copy[at] = changed(copy[at], rng)
        return broken(b"\n".join(map(as_json, copy)) + b"\n", rng)

    def read_both(path: Path) -> None:
        results = read(path)
        for before, after in ((results, whole), (whole, results)):
            difference = diff(before, after)
            list(map(repr, difference.changes))
        with Store(path, header, resume=True) as store:
            assert store.existing is not None
            earlier = {
                key: head.reference_measurements
                for key, head in store.existing.headers_by_key().items()
                if head and head.reference_measurements
            }
            rows = [row for key, row in store.existing.by_key().items() if key in known]
        measured = Measured(rows, references, header.environment, earlier, store.notes, path)
        answer = document(experiment, ask, measured, {})
        formats: tuple[Format, ...] = ("table", "json", "csv")
        for format in formats:
            render(answer, format, io.StringIO())

    return Reader(damaged, read_both)


def weights_reader() -> Reader:
    """A safetensors file with an index."""
    from llmbench.model.weights import Checkpoint

    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "F32", "shape": [0, 2], "data_offsets": [32, 32]},
    }
    index = {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys("abc", "model.safetensors")}

    def damaged(rng: random.Random) -> bytes:
        text = broken(as_json(mutated(header, rng)), rng)
        listed = broken(as_json(mutated(index, rng) if rng.random() < 0.3 else index), rng)
        size = rng.choice([len(text)] * 9 + [0, 2**63, 2**64 - 1, len(text) + 1])
        weights = size.to_bytes(8, "little") + text + bytes(32)
        return len(listed).to_bytes(8, "little") + listed + weights

    def read(path: Path) -> None:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        (path.parent / "model.safetensors.index.json").write_bytes(content[8 : 8 + size])
        (path.parent / "model.safetensors").write_bytes(content[8 + size :])
        checkpoint = Checkpoint(path.parent)
        for name in checkpoint.names:
            checkpoint.tensor(name).sum()
        str(checkpoint.elements)

    return Reader(damaged, read)


def gguf_reader() -> Reader:
    """The header of a GGUF file."""
    from llmbench.spec.weights.gguf_file import read_gguf

    def text(name: str) -> bytes:
        return len(name).to_bytes(8, "little") + name.encode()

    def words(*values: int, size: int = 8) -> bytes:
        return b"".join(value.to_bytes(size, "little") for value in values)

    def damaged(rng: random.Random) -> bytes:
        def count(value: int) -> int:
            return value if rng.random() < 0.95 else rng.choice([0, 1, 2, 31, 2**31, 2**32 - 1])

        def long(value: int) -> int:
            return value if rng.random() < 0.95 else rng.choice([0, 1, 33, 10**6, 10**7, 2**40, 2**63, 2**64 - 1])

        content = b"GGUF" + words(count(3), size=4) + words(long(2), long(3))
        content += text("general.architecture") + words(count(8), size=4) + text("llama")
        content += text("general.alignment") + words(count(4), count(32), size=4)
        content += text("tokenizer.ggml.tokens") + words(count(9), count(8), size=4) + words(long(2))
        content += text("a") + text("b")
        for name, offset in (("token_embd.weight", 0), ("output.weight", 288)):
            content += text(name) + words(count(2), size=4) + words(long(256), long(2))
            content += words(count(12), size=4) + words(long(offset))
        return broken(content + bytes(-len(content) % 32) + bytes(576), rng)

    return Reader(damaged, read_gguf)


READERS: dict[str, Callable[[], Reader]] = {
    "config": config_reader,
    "spec": spec_reader,
    "set": set_reader,
    "name": name_reader,
    "results": results_reader,
    "weights": weights_reader,
    "gguf": gguf_reader,
}


def problem_of(reader: Reader, path: Path) -> str | None:
    """Return what a reader does wrong with a file, or None."""
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_S)
    try:
        reader.read(path)
    except LLMBenchError as problem:
        longest = max(len(str(problem)), len(problem.hint or ""))
        if longest > MOST_CHARACTERS + 1 or not str(problem):
            return f"the message has {longest} characters"
    except TooLong:
        return f"more than {MOST_S} s: {place()}"
    except Exception as problem:
        return f"{type(problem).__name__}: {place()}: {str(problem)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


def place() -> str:
    """Return the innermost lines of code that the present exception passed through."""
    frames = traceback.extract_tb(sys.exc_info()[2])[-4:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def failures(reader: Reader, rng: random.Random, seconds: float, folder: Path) -> Iterator[tuple[str, bytes] | None]:
    """Yield the problem and the input of each try, or None for a try without a problem."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        content = reader.damaged(rng)
        path = folder / "config.json"
        path.write_bytes(content)
        problem = problem_of(reader, path)
        yield None if problem is None else (problem, content)


def main() -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description="Give damaged input to every reader of files and options.")
    parser.add_argument("--seconds", type=float, default=60.0, help="the time of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, help="try only this reader")
    parser.add_argument("--keep", type=Path, help="write the input of each different failure to this folder")
    arguments = parser.parse_args()

    def stop(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGVTALRM, stop)
    names = [arguments.reader] if arguments.reader else list(READERS)
    failed = False
    for name in names:
        reader = READERS[name]()
        tries, bad = 0, 0
        different: dict[str, tuple[str, bytes]] = {}
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(f"{arguments.seed} {name}")
            for outcome in failures(reader, rng, arguments.seconds / len(names), Path(folder)):
                tries += 1
                if outcome is not None:
                    bad += 1
                    problem, content = outcome
                    different.setdefault(problem.rpartition(" < ")[0], (problem, content))
        print(f"{name}: {tries:,} tries, {bad} failures", flush=True)
        for number, (problem, content) in enumerate(different.values()):
            print(f"  {problem}\n    {content[:300]!r}", flush=True)
            if arguments.keep is not None:
                (arguments.keep / f"{name}-{number}").write_bytes(content)
        failed |= bad > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
