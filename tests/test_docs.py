"""The pages agree with the program: references are up to date, examples print the shown output, links have targets."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
from msgspec.json import encode

from llmbench.cli import run
from llmbench.kernels.registry import KERNELS
from llmbench.spec.ffn import FFN
from llmbench.spec.mixer import SingleMixer
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Positions
from tests.measure.rows import header, row
from tests.own_process import run_module

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def tool(name: str) -> ModuleType:
    """Import a script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"llmbench_tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = tool("command_reference")
fields = tool("spec_reference")
answers = tool("json_reference")
examples = tool("doc_examples")
components = tool("component_models")
textbook = tool("textbook_page")
COMMANDS = {name: (command, text) for name, command, text in reference.commands()}
HELP_EXAMPLES = sorted(
    {
        re.sub(r"\s+", " ", example).strip()
        for _, text in COMMANDS.values()
        for example in re.findall(r"(?m)^    (llmbench .+(?:\n    (?!llmbench).+)*)", text)
    }
)
relative = {path: str(path.relative_to(ROOT)) for path in PAGES}


def in_own_process(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `llmbench ...` in a process of its own."""
    interpreting = "kernels"  # its subcommands choose whether they interpret, before they import Triton
    return run_module(*words, imported="torch" if words[1] == interpreting else "torch._dynamo")


@pytest.mark.parametrize(
    "module", [reference, fields, answers, textbook], ids=["commands", "spec-fields", "read-the-json", "textbook"]
)
def test_references_are_up_to_date(module: ModuleType) -> None:
    assert module.TARGET.read_text(encoding="utf-8") == module.reference(), f"run python {module.__file__}"


def test_the_table_for_completion_is_up_to_date() -> None:
    assert reference.TABLE.read_text(encoding="utf-8") == reference.table(), f"run python {reference.__file__}"


@pytest.mark.parametrize("page", components.PAGES)
def test_component_pages_list_the_models_that_use_each_feature(page: str) -> None:
    path = components.FOLDER / f"{page}.md"
    assert len(components.MARKED.findall(path.read_text(encoding="utf-8"))) == 1
    assert path.read_text(encoding="utf-8") == components.current(path), "run python tools/component_models.py"


@pytest.mark.parametrize("kind", [*get_args(SingleMixer), *get_args(FFN), *get_args(Positions)])
def test_component_pages_have_every_model_of_a_kind(kind: type) -> None:
    """Features of a kind are those that no model without this kind has."""
    pages: dict[str, dict[str, Callable[[ModelSpec], bool]]] = components.PAGES
    users = {spec.name for spec in components.specs() if uses(spec, kind)}
    tests = [has for features in pages.values() for has in features.values()]
    listed = [{spec.name for spec in components.specs() if has(spec)} for has in tests]
    names = set().union(*(names for names in listed if names <= users))
    assert names == users, f"add a row for {kind.__name__} to PAGES in tools/component_models.py"


def uses(spec: ModelSpec, kind: type) -> bool:
    """Whether a model has a mixer, a feed-forward or a position encoding of a kind."""
    feeds = [layer.ffn for layer in components.layers(spec)]
    parts = [*components.mixers(spec, kind), *feeds, *components.positions(spec)]
    return any(isinstance(part, kind) for part in parts)


def test_the_table_of_options_and_limits_has_every_kernel() -> None:
    text = (ROOT / "docs" / "concepts" / "kernels.md").read_text(encoding="utf-8")
    table = text.split("| kernel | options | limits |\n")[1].split("\n\n")[0]
    names = [name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(names) == sorted(KERNELS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    page = reference.TARGET.read_text(encoding="utf-8")
    command, _ = COMMANDS[name]
    section = page.split(f" {name}\n\n```text\n")[1].partition("\n```")[0]
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            shown = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
            assert all(text in section for text in shown), parameter.name
            assert getattr(parameter, "help", "x"), f"{parameter.name} has no help text"
    assert command.help


@pytest.mark.parametrize("name", [name for name, (command, _) in COMMANDS.items() if not hasattr(command, "commands")])
def test_every_command_has_examples(name: str) -> None:
    assert any(example.startswith(name) for example in HELP_EXAMPLES)


@pytest.mark.parametrize("example", [example for example in HELP_EXAMPLES if "hf:" not in example])
def test_examples_of_the_help_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    folder = tmp_path / "path" / "to"
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert run(["specs", "import", "path/to/config.json", "-o", "my-model.toml"]) == 0
    capsys.readouterr()
    if "-o my-model.toml" in example:
        (tmp_path / "my-model.toml").unlink()  # `specs import` replaces no file
    shutil.copy(ROOT / "tests" / "learn" / "solutions.py", "my.py")
    if example.startswith("llmbench diff"):
        for name in ("before", "after"):
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(encode(line) + b"\n" for line in (header(), row())))
    if example.startswith(TRAINING):
        example = few_steps(example, tmp_path, monkeypatch)
    own_process = ("llmbench kernels inspect", "llmbench profile", "llmbench bench")
    if example.startswith(own_process):  # this process may run kernels in the interpreter
        in_own_process(shlex.split(example)).check_returncode()
        return
    assert run(shlex.split(example)[1:]) == 0, capsys.readouterr().err


TRAINING = tuple(f"llmbench {name}" for name in ("train", "evaluate", "generate", "ablate", "dynamics", "extrapolate"))


def few_steps(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an example with two steps on a short text. Write the text, and the run that the example reads."""
    compares = example.startswith(("llmbench ablate", "llmbench dynamics", "llmbench extrapolate"))
    text = "to be, or not to be: that is the question. " * (500 if compares else 100)
    (folder / "book.txt").write_text(text)
    monkeypatch.setattr("llmbench.learn.texts.plays", text.encode)
    monkeypatch.setattr("llmbench.learn.session.measured_peak", lambda device, settings: (1e11, "fixed"))
    if "--resume" in example:
        assert run(["train", "nanogpt-cpu", "--batch", "1", "--steps", "2", "--stop-at", "1", "-o", "run2"]) == 0
        return example
    if compares:
        example = re.sub(r"--seeds \d+|--layers \S+|--steps \d+|--lr \S+", "", example)
        short = {"ablate": " --seeds 1 --seq 16 --set num_hidden_layers=1", "dynamics": " --layers 1"}
        return f"{example} --steps 1 --batch 1{short.get(example.split()[1], '')}"
    if not example.startswith("llmbench train"):
        assert run(["train", "nanogpt-cpu", "--batch", "1", "--steps", "1", "-o", "run"]) == 0
        return example
    example = re.sub(r"--stop-at \d+", "--stop-at 1", example)
    return re.sub(r" --steps \d+", "", example) + " --steps 2 --batch 1"


@pytest.mark.parametrize("path", PAGES, ids=relative.get)
def test_examples_of_the_pages_print_the_shown_output(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # a reader does not set it
    monkeypatch.setattr(examples, "in_own_process", in_own_process)
    text = path.read_text(encoding="utf-8")
    for block in examples.BLOCK.finditer(text):
        if block["body"].startswith(examples.PROMPTS):
            assert block["info"].strip() in ("console", examples.RECORDED), f"not marked: {block['body'][:60]}"
    assert examples.actual(text) == text, "run python tools/doc_examples.py"


def test_an_ellipsis_on_a_page_stands_for_any_lines() -> None:
    for shown, printed, same in (
        ("…\n\n  2 x\n…\n", "a\n\n  2 x\nb\n", True),
        ("…\n\n  2 x\n…\n", "a\n\n  3 x\nb\n", False),
        ("…\na\n…\n", "a\nb\n", True),
        ("a\n…\nc\n", "a\nb\nb\nc\n", True),
        ("a\n…\nc\n", "ab\nc\n", False),
        ("…\nb\n…\nb\n", "a\nb\n", False),
        ("…\nb\n", "a\nab\n", False),
    ):
        assert examples.agrees(shown, printed) == same, (shown, printed)


@pytest.mark.parametrize("path", PAGES, ids=relative.get)
def test_python_examples_of_the_pages(path: Path) -> None:
    import doctest

    for block in examples.BLOCK.finditer(path.read_text(encoding="utf-8")):
        if block["info"].strip() == "pycon":
            example = doctest.DocTestParser().get_doctest(block["body"], {}, relative[path], str(path), 0)
            assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_the_page_of_screens_has_every_command_in_80_columns() -> None:
    text = (ROOT / "docs" / "screens.md").read_text(encoding="utf-8")
    shown = [pair for block in examples.BLOCK.finditer(text) for pair in examples.commands(block["body"])]
    for name, (command, _) in COMMANDS.items():
        if not hasattr(command, "commands"):
            assert any(f"{text} ".startswith(f"{name} ") for text, _ in shown), f"no screen of {name}"
    for text, screen in shown:
        assert screen, f"docs/screens.md shows no output of {text}"
        if not text.startswith("llmbench specs show"):  # TOML, whose lines are as long as their texts
            assert max(map(len, screen.splitlines())) <= 80, text


@pytest.mark.parametrize("path", PAGES, ids=relative.get)
def test_the_site_shows_every_block_as_code(path: Path) -> None:
    """MkDocs shows a block with any other first line as a paragraph, without a warning."""
    for block in examples.BLOCK.finditer(path.read_text(encoding="utf-8")):
        assert re.fullmatch(r'\w*( title="[^"]+")?', block["info"].strip()), block["info"]


def anchors(text: str) -> set[str]:
    """The anchors of all headings of a page."""
    prose = examples.BLOCK.sub("", text)
    titles = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=relative.get)
def test_links_have_targets(path: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", examples.BLOCK.sub("", path.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), f"{target} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: the page has no such heading"


def test_every_page_of_the_docs_is_linked_from_the_index_and_in_the_navigation_of_the_site() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    site = (ROOT / "tools" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = str(path.relative_to(ROOT / "docs"))
        assert name == "index.md" or f"({name})" in index, f"{name} is not in docs/index.md"
        assert f": docs/{name}\n" in site, f"docs/{name} is not in `nav` of tools/site/mkdocs.yml"


def test_paths_named_in_the_pages_exist() -> None:
    for path in PAGES:
        for name in re.findall(
            r"`((?:llmbench|specs|tests|tools|benchmarks|kernels|docs|\.ci)/[\w./-]+)`", path.read_text()
        ):
            if Path(name).stem.isupper() and Path(name).suffix != ".md":  # a placeholder, as in specs/models/NAME.toml
                continue
            assert (ROOT / name).exists(), f"{relative[path]} names {name}"


def test_no_page_counts_the_bundled_specs() -> None:
    """A new model or device then needs no edit of a page; a lower bound ("more than 140 models") must hold."""
    counts = {kind: len(list((ROOT / "specs" / kind).glob("*.toml"))) for kind in ("models", "devices")}
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"\d+ bundled (?:models|devices)", text), relative[path]
        for number, kind in re.findall(r"(?:more than|over) (\d+) (models|devices)", text):
            assert counts[kind] > int(number), relative[path]
