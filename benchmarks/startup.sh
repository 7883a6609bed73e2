#!/usr/bin/env bash
# Measures how long a sizing command takes as a whole process, and compares it with minimal Typer apps in the same
# environment.
#
#   benchmarks/startup.sh                    # the llmbench on PATH
#   benchmarks/startup.sh path/to/venv/bin   # the llmbench in this folder
#   RUNS=40 benchmarks/startup.sh            # more runs of each command (default 20)
#
# The first Typer app prints one line, and the second prints a rich table. The goals: `--format json` and a help text take
# at most 1.5× the time of the first app, a Tab (completion) at most 0.5×, and a table takes at most 1.3× the time of the
# second app. Exit code 1 if a goal is missed.
# The script uses hyperfine if it is installed. Otherwise, a loop runs all commands in turn, so that a disturbance of
# the machine slows all commands equally.
set -euo pipefail

bin=${1:-$(dirname "$(command -v llmbench || { echo "no llmbench on PATH; name the bin folder of its environment" >&2; exit 3; })")}
bin=$(cd "$bin" && pwd)
[[ -x $bin/llmbench && -x $bin/python ]] || { echo "$bin does not contain both llmbench and python" >&2; exit 3; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cat > line.py <<'PYTHON'
import typer

app = typer.Typer()


@app.command()
def main(name: str) -> None:
    print(name)


app()
PYTHON

cat > table.py <<'PYTHON'
import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()


@app.command()
def main(name: str) -> None:
    table = Table("component", "formula", "per layer", "model", "share", title=name)
    for component in ("embedding", "attention", "mlp", "norms", "lm_head", "total"):
        table.add_row(component, "vocab × hidden", "67,108,864", "2,147,483,648", "31.9%")
    Console().print(table)


app()
PYTHON

"$bin/python" - "$bin" "${RUNS:-20}" <<'PYTHON'
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import time

BIN, RUNS = sys.argv[1], int(sys.argv[2])
GOALS = {"json": ("line", 1.5), "table": ("table", 1.3)}
MORE = {
    "params --help": (["params", "--help"], "line", 1.5),
    "params ll<Tab>": (["params", "ll"], "line", 0.5),
}
commands = {name: [f"{BIN}/python", f"{name}.py", "llama2-7b"] for name in ("line", "table")}
for command in ("params", "flops", "kvcache", "memory"):
    for kind in GOALS:
        commands[f"{command} {kind}"] = [f"{BIN}/llmbench", command, "llama2-7b", "--format", kind]

for title, (words, _, _) in MORE.items():
    variable = ["env", "_LLMBENCH_COMPLETE=bash"] if "Tab" in title else []
    commands[title] = [*variable, f"{BIN}/llmbench", *words]


def by_hyperfine():
    names = list(commands)
    subprocess.run(
        ["hyperfine", "--shell=none", "--style=none", "--warmup=3", f"--runs={RUNS}", "--export-json=times.json"]
        + [" ".join(commands[name]) for name in names],
        check=True, stdout=subprocess.DEVNULL,
    )
    results = json.load(open("times.json"))["results"]
    return {name: result["times"] for name, result in zip(names, results)}


def by_loop():
    times = {name: [] for name in commands}
    for turn in range(RUNS + 2):  # the first two turns fill caches and write bytecode
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def is_editable():
    text = importlib.metadata.distribution("llmbench").read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


tool = "hyperfine" if shutil.which("hyperfine") else "an interleaved loop"
times = by_hyperfine() if tool == "hyperfine" else by_loop()
median = {name: statistics.median(values) for name, values in times.items()}
print(f"whole process, median of {RUNS} runs by {tool}, Python {sys.version.split()[0]}, llmbench {importlib.metadata.version('llmbench')}")
if is_editable():
    print("llmbench is an editable install, whose import hook lengthens every llmbench time below; install a wheel to compare with the goals")
print(f"\n  {'command':<34}{'ms':>7}{'± ms':>7}{'ratio':>8}{'goal':>8}")
missed = 0
for name, values in times.items():
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    line = f"{1000 * median[name]:>7.0f}{1000 * spread:>7.0f}"
    if name in ("line", "table"):
        title = {"line": "Typer app, one line", "table": "Typer app, a rich table"}[name]
        print(f"  {title:<34}{line}")
        continue
    if name in MORE:
        _, baseline, goal = MORE[name]
        title = f"llmbench {name}"
    else:
        command, kind = name.split()
        baseline, goal = GOALS[kind]
        title = f"llmbench {command} --format {kind}"
    ratio = median[name] / median[baseline]
    missed += ratio > goal
    print(f"  {title:<34}{line}{ratio:>7.2f}×{goal:>7.1f}×{'' if ratio <= goal else '  missed'}")
print("\n  ratio: the time of the command divided by the time of the Typer app (table: a rich table; else: one line)" + (f"; {missed} missed" if missed else "; all goals met"))
sys.exit(1 if missed else 0)
PYTHON
