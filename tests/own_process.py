"""Commands in processes of their own, where Triton's kernels are not interpreted unless the command says so.

The processes are forks of one that has imported torch, so that torch is not imported again for every command.
`torch._dynamo` takes as long again. It imports Triton, and that import decides whether kernels are interpreted, so only
forks for commands that never use the interpreter may have it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_module(
    *command: str, cwd: Path | None = None, imported: str = "torch", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m COMMAND` with the variables of this process, except TRITON_INTERPRET, and those of `environment`.

    `imported`: the module that the process has already imported, "torch" or "torch._dynamo"."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    request = {"command": command, "cwd": str(cwd or Path.cwd()), "environment": inherited | environment}
    server = _server(imported)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return subprocess.CompletedProcess(command, **json.loads(server.stdout.readline()))


@functools.cache
def _server(imported: str) -> subprocess.Popen[str]:
    """The process that forks, started by the first command of this process."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.own_process", imported],
        cwd=ROOT,
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # it ends with its input
    return server


def _forked(command: list[str], cwd: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command in a fork of this process: its exit code and the text of its two streams."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _run(command, cwd, environment, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"returncode": os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1]}


def _run(command: list[str], cwd: str, environment: dict[str, str], out: int, err: int) -> None:
    """Run a command in this process, which then ends."""
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = list(command)
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Serve commands, a line of JSON each, until the input ends."""
    import_module(sys.argv[1])
    assert ("triton" in sys.modules) == (sys.argv[1] == "torch._dynamo")
    gc.freeze()  # collections in the forks are quick, and their pages stay shared
    for line in sys.stdin:
        print(json.dumps(_forked(**json.loads(line))), flush=True)
    gc.unfreeze()


if __name__ == "__main__":
    main()
