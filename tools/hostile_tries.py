"""Attack the commands of llmbench with hostile files, faulty environments and faults during runs, and count failures.

    python tools/hostile_tries.py --tries 5000 --seed 1
    python tools/hostile_tries.py --seed 1 --only kill:17      # repeat one try

The kinds of tries are the functions in `KINDS`. Most tries run a command inside this process. A try of `process` starts
a real process. A try of the kinds below it runs a short `bench` in a fork and injects a fault: a signal, a lost file, a
full disk, or a second run on the same file. A try fails if

- a command ends with a traceback, an unknown exit code or an error without a message,
- a command takes more than 5 s of CPU time or 60 s in all,
- stdout or stderr has a character that a terminal obeys,
- a row is missing in a result file that had it or that a message promised, or the file has a row of no case.

The exit code is 1 if a try failed. A try depends only on the seed, its kind and its number, apart from the moments at
which the machine delivers signals.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads of its parent

from fuzz_readers import TooLong
from hostile.answers import MOST_MEMORY, Attempt, Problems, codes
from hostile.inputs import arguments, assignments, checkpoints, configs, files, ggufs, grammars, specs, tables
from hostile.learning import runs, texts
from hostile.runs import full_disk, killed, lost_file, measure_quickly, processes, results, two_runs


def kinds() -> dict[str, tuple[float, Attempt]]:
    """Return each kind of tries, with its share of all tries."""
    inner: dict[str, tuple[float, Attempt]] = {
        "config": (0.11, configs()),
        "spec": (0.1, specs()),
        "set": (0.08, assignments()),
        "argument": (0.08, arguments()),
        "grammar": (0.08, grammars()),
        "table": (0.04, tables()),
        "file": (0.06, files()),
        "checkpoint": (0.06, checkpoints()),
        "gguf": (0.06, ggufs()),
        "process": (0.06, processes()),
        "run": (0.06, runs()),
        "text": (0.05, texts()),
    }
    whole = measure_quickly()
    return inner | {
        "result": (0.1, results(whole)),
        "kill": (0.02, killed(whole)),
        "lost": (0.02, lost_file(whole)),
        "full": (0.01, full_disk(whole)),
        "two": (0.01, two_runs(whole)),
    }


def one(attempt: Attempt, seed: str) -> Problems:
    """Run one try in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name) / "a" / "b" / "c"  # `..` in a path stays inside
        folder.mkdir(parents=True)
        return attempt(random.Random(seed), folder)


def main() -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description="Attack the commands of llmbench, and count the failures.")
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only this kind, or only one try of it: kill, or kill:17", default="")
    options = parser.parse_args()

    def stop(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGVTALRM, stop)
    signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    only, _, chosen = options.only.partition(":")
    total: Counter[str] = Counter()
    for name, (share, attempt) in kinds().items():
        if only not in ("", name):
            continue
        count = max(1, round(options.tries * (1 if only else share)))
        failures: Counter[str] = Counter()
        codes.clear()
        begin = time.monotonic()
        for number in [int(chosen)] if chosen else range(count):
            problems = one(attempt, f"{options.seed} {name} {number}")
            for problem in problems:
                failures[re.split(r"[:|'\"]", problem)[0].strip()] += 1
                print(f"  {name}:{number} {problem}", flush=True)
            total["tries"] += 1
            total["failed"] += bool(problems)
        ends = ", ".join(f"{times} × {code}" for code, times in codes.most_common())
        print(f"{name}: {count:,} tries, {dict(failures) or 'no failures'}; exit codes {ends};", end=" ")
        print(f"{time.monotonic() - begin:.0f} s", flush=True)
    print(f"{total['tries']:,} tries with seed {options.seed}, {total['failed']} failed")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
