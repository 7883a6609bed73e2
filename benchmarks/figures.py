"""Record every figure of the sizing commands, and compare two records value by value.

A change of the code's structure must not change a figure. Make one record before the change and one after it, and
compare the records:

    python benchmarks/figures.py record before.json [--configs FOLDER]
    python benchmarks/figures.py record after.json  [--configs FOLDER]
    python benchmarks/figures.py compare before.json after.json [--renamed OLD=NEW]...

A record contains the JSON output of each command for each bundled model and for each config in FOLDER (*.json).
`compare` prints each value that differs, and exits with code 1 if there is one. `--renamed` gives the new name of a
JSON key that the change has renamed. The wording of notes and messages is not compared. A record takes ten seconds on
one core and does not need torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmbench.cli import run
from llmbench.spec.catalog import bundled_models

COMMANDS: dict[str, list[str]] = {
    "params": [],
    "flops prefill": ["--seq", "2048"],
    "flops prefill, all pairs": ["--seq", "2048", "--attention", "full"],
    "flops decode": ["--phase", "decode", "--seq", "8192", "--batch", "3"],
    "flops train": ["--phase", "train", "--seq", "4096", "--recompute", "full"],
    "kvcache": ["--seq", "5000", "--batch", "2"],
    "kvcache int8": ["--seq", "131072", "--kv-dtype", "int8"],
    "memory train": ["--seq", "4096"],
    "memory train, plain torch": ["--seq", "1024", "--batch", "2", "--kernels", "standard", "--precision", "fp32"],
    "memory train, split": ["--seq", "4096", "--layout", "dp=8,zero=3", "--recompute", "full"],
    "memory train, tensor parallel": ["--seq", "4096", "--layout", "tp=2,sp,dp=2,zero=1"],
    "memory inference": ["--phase", "inference", "--seq", "8192", "--batch", "4"],
    "compare": ["--seq", "4096"],
}
"""The commands that are recorded for each model, with their options. The first word of a key is the command."""

VARIABLE = ("environment", "inputs")
"""Keys of the JSON output that contain no figures."""
TEXTS = ("approximate_because", "batch_is", "feed_forward", "message", "notes", "schema")
"""Keys whose values are texts or versions. Their words may change, so only their presence and the number of texts are
compared."""


def record(configs: Path | None) -> dict[str, Any]:
    """Return the JSON output of every command for every model, by `model | command`. If a command refuses a model,
    return its exit code and its message instead."""
    models = [*bundled_models(), *(sorted(map(str, configs.glob("*.json"))) if configs else [])]
    answers: dict[str, Any] = {}
    for number, model in enumerate(models, 1):
        for name, options in COMMANDS.items():
            answers[f"{Path(model).name} | {name}"] = _answer([name.split()[0], model, *options, "--format", "json"])
        if sys.stderr.isatty():
            print(f"\r{number} of {len(models)} models", end="", file=sys.stderr)
    return answers


def _answer(arguments: list[str]) -> Any:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    if code:
        return {"exit_code": code, "message": err.getvalue()}
    return {key: value for key, value in json.loads(out.getvalue()).items() if key not in VARIABLE}


def differences(before: Any, after: Any, renamed: dict[str, str], at: str = "") -> Iterator[str]:
    """Yield one line for each place where two outputs differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        before = {renamed.get(key, key): value for key, value in before.items()}
        for key in sorted(before.keys() | after.keys()):
            if key in before and key in after:
                if key not in TEXTS:
                    yield from differences(before[key], after[key], renamed, f"{at}.{key}")
                elif (len(before[key]) != len(after[key]) and key != "message") or bool(before[key]) != bool(
                    after[key]
                ):
                    yield f"{at}.{key}: {before[key]!r} before, {after[key]!r} after"
            else:
                yield f"{at}.{key}: only in {'the first' if key in before else 'the second'} record"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (first, second) in enumerate(zip(before, after, strict=True)):
            yield from differences(first, second, renamed, f"{at}[{index}]")
    elif before != after or type(before) is not type(after):
        yield f"{at}: {before!r} before, {after!r} after"


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record")
    recording.add_argument("output", type=Path)
    recording.add_argument("--configs", type=Path)
    comparing = actions.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW")
    options = parser.parse_args()
    if options.action == "record":
        options.output.write_text(json.dumps(record(options.configs), indent=1))
        return 0
    before, after = json.loads(options.before.read_text()), json.loads(options.after.read_text())
    lines = list(differences(before, after, dict(pair.split("=", 1) for pair in options.renamed)))
    print("\n".join([*lines, f"{len(before):,} outputs before, {len(after):,} after: {len(lines):,} differences"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
