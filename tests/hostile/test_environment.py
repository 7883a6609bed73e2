"""Variables, folders and signals of the environment end no command with a traceback and lose no answer."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from llmbench.bench.experiments import experiment
from llmbench.cli import run
from llmbench.errors import CannotRunError
from llmbench.measure import reference
from llmbench.measure.compiler_cache import compiler_cache_fault
from llmbench.measure.results import read
from llmbench.report.plots import Panel, Series, check_plot, save
from tests.measure.rows import references
from tests.own_process import run_module


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_without_a_compiler_cache_only_compiled_candidates_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = ["--model", "smollm2-135m", "--device", "cpu", "--seq", "2", "--format", "json"]
    command = ["llmbench", "profile", "norm", "--impl", "compiled", *options]
    done = run_module(*command, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file"))
    rows = {row["implementation"]: row for row in json.loads(done.stdout)["implementations"]}
    assert [rows[name]["status"] for name in ("standard", "compiled")] == ["ok", "n/a"]
    assert f"cache folder {tmp_path / 'file'}: File exists" in rows["compiled"]["reason"]
    assert done.returncode == 0


def test_bench_on_a_full_disk_shows_every_row_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file has space for all rows, neither the named one nor one in the folder for temporary files."""
    monkeypatch.setattr(experiment, "QUICK", experiment.QUICK.fixed(3))  # this test reads rows, not times
    monkeypatch.setattr(reference, "measure_references", lambda *_, **__: references())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "x.jsonl"
    options = ["--device", "cpu", "--model", "smollm2-135m", "--seq", "2", "-o", str(path), "--format", "json"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        assert run(["bench", "heads", *options]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    answer = capsys.readouterr()
    kept = {f"{row.case} {row.implementation}" for row in read(path).rows}
    shown = {f"{row['case']} {row['implementation']}" for row in json.loads(answer.out)["rows"]}
    assert 0 < len(kept) < len(shown)
    assert kept < shown
    assert answer.err.startswith("error: ")
    assert "File too large" in answer.err
    assert "rows in" not in answer.err


def test_torch_can_import_its_compiler_without_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers import the compiler, and the import creates the folder."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    fault = compiler_cache_fault.__wrapped__
    assert "Not a directory" in (fault() or "")
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new"))
    assert fault() is None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "new")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "wrong"])
def test_a_plot_needs_no_backend(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", backend)
    code = "from llmbench.report.plots import *; from pathlib import Path; path = Path('x.svg'); check_plot(path)"
    panel = "Panel('time', '', 'tokens', 's', [Series('x', [(1, 1e-3), (2, 1e-2)])])"
    done = python(f"{code}; save([{panel}], path)", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


def test_a_plot_shows_names_as_they_are(tmp_path: Path) -> None:
    """matplotlib would take the text between two `$` for a formula."""
    name, path = r"$\frac$", tmp_path / "x.svg"
    save([Panel(name, name, name, "s", [Series(name, [(1, 1e-3), (2, 1e-2)])])], path, title=name, caption=name)
    assert path.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "0", "WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2', not a number from 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "cannot reach each other"),
    ],
)
def test_wrong_variables_of_torchrun(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["bench", "train", "--device", "cpu"]) in (2, 3)
    assert problem in capsys.readouterr().err


def test_one_process_of_torchrun_reports_a_wrong_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for words in (["params", "a-model-nobody-knows"], ["params", "gpt2", "--xyzzy"]):
        for rank, reports in (("0", True), ("1", False)):
            monkeypatch.setenv("LOCAL_RANK", rank)
            assert run(words) == 2
            assert bool(capsys.readouterr().err) == reports


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [("--top-p", "0", "0 leaves no token"), ("--temperature", "1e-40", "is above 0 and below")],
)
def test_wrong_draws_are_refused_before_torch_is_imported(option: str, value: str, problem: str) -> None:
    code = (
        "import sys; from llmbench.cli import run; "
        f"code = run(['generate', 'run', {option!r}, {value!r}]); sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = python(code)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_torch_that_cannot_be_imported_is_no_bug() -> None:
    variables = os.environ | {"TORCH_LOGS": "wrong"}
    done = python("from llmbench.cli import main; main(['model', 'gpt2'])", env=variables)
    assert done.returncode == 3
    assert done.stderr.startswith("error: PyTorch cannot be imported: ValueError: Invalid log settings")


def test_a_matplotlib_that_cannot_draw_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("Failed to process string with tex")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(CannotRunError, match="matplotlib cannot draw: RuntimeError: Failed to process"):
        check_plot(Path("x.svg"))


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
DURING_IMPORTS = f"""
class Finder:
    def find_spec(name, *arguments):
        if name == "typer":
            {INTERRUPT}
sys.meta_path.insert(0, Finder)
"""
AT_EXIT = f"atexit.register(lambda: {INTERRUPT})"


@pytest.mark.parametrize("moment", [DURING_IMPORTS, AT_EXIT], ids=["imports", "exit"])
def test_ctrl_c_outside_a_command_ends_the_process(moment: str) -> None:
    """A shell starts its background jobs with Ctrl-C ignored, and tests may be such a job. So each process sets it."""
    code = f"import atexit, os, signal, sys; from llmbench.cli import main\n{moment}\nmain(['params', 'gpt2'])"
    usual, ignored = (partial(signal.signal, signal.SIGINT, kind) for kind in (signal.SIG_DFL, signal.SIG_IGN))
    done = python(code, preexec_fn=usual)
    assert (done.returncode, done.stderr) == (130, "")
    assert ("gpt2" in done.stdout) == (moment == AT_EXIT)
    assert python(code, preexec_fn=ignored).returncode == 0  # as nohup does


@pytest.mark.parametrize(
    "entry", ["from llmbench.__main__ import main", "import runpy; runpy.run_module('llmbench', run_name='__main__')"]
)
def test_ctrl_c_before_the_first_import_ends_the_process(entry: str) -> None:
    """The console script and `python -m llmbench` handle Ctrl-C before they import anything."""
    code = f"import os, signal, sys\n{DURING_IMPORTS.replace('typer', 'llmbench.cli')}\n{entry}"
    done = python(code, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_an_object_is_freed_ends_the_command() -> None:
    """Python ignores an exception there, so the process would go on."""
    code = f"""
import os, signal, time
from llmbench.cli import application, main

class Part:
    def __del__(self):
        {INTERRUPT}

def run(words, imported):
    imported()
    Part()
    time.sleep(30)

application.run = run
main([])
"""
    done = python(code, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL), timeout=25)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("columns", ["0", "-5", "abc", "1", "2", "100000"])
@pytest.mark.parametrize("arguments", [["params", "llama2-7b"], ["memory", "gpt2"], ["--help"]], ids=" ".join)
def test_every_width_of_a_terminal_gets_the_whole_answer(
    columns: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert run(arguments) == 0
    assert len("".join(capsys.readouterr().out.split())) > 100


@pytest.mark.parametrize("name", ["typing", "json"])
def test_a_file_of_the_current_folder_replaces_no_package(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit(99)")
    command = [sys.executable, "-m", "llmbench", "params", "gpt2", "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
