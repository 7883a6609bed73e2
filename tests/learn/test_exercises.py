"""Exercises: right answers pass, common mistakes fail, and the answers are those of other sources."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.learn.exercises import EXERCISES, load_exercise
from llmbench.learn.exercises.answer import EXAMPLES, parse_answer
from llmbench.learn.exercises.check import CaseError, check_cases
from llmbench.learn.exercises.fault import Fault
from llmbench.learn.exercises.function import Function
from llmbench.learn.exercises.question import Draw, Question, grade
from llmbench.learn.exercises.runner import run_check
from tests.learn import solutions

Capture = pytest.CaptureFixture[str]
FUNCTIONS = [name for name in EXERCISES if isinstance(load_exercise(name), Function)]
QUESTIONS = [name for name in EXERCISES if isinstance(load_exercise(name), Question)]
SEEDS = (0, 1, 2, 3, 7)


def asked(name: str, seed: int = 0) -> Any:
    exercise = load_exercise(name)
    assert isinstance(exercise, Question)
    return exercise.ask(Draw(seed))


# Questions


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_right_answer_passes_and_mistakes_fail(name: str) -> None:
    for seed in SEEDS:
        question = asked(name, seed)
        exact = Fraction(question.answer)
        text = str(exact) if exact.denominator == 1 else f"{question.answer:.15g}"
        assert grade(question, text).passed
        assert not grade(question, f"{question.answer * 1.5:.10f}").passed
        for what, wrong in question.mistakes:
            if abs(wrong / question.answer - 1) > (question.tolerance or 0):
                assert not grade(question, f"{wrong:.12f}").passed, what
        if question.tolerance:
            assert grade(question, f"{question.answer * (1 + 0.9 * question.tolerance):.15f}").passed
            assert not grade(question, f"{question.answer * (1 + 1.1 * question.tolerance):.15f}").passed
        elif question.answer > 100:
            assert not grade(question, str(int(question.answer) + 1)).passed


def test_the_days_of_the_solution_are_a_right_answer() -> None:
    """Also of a run that takes less than a day."""
    for seed in range(40):
        question = asked("training-days", seed)
        assert grade(question, question.solution.rpartition(" = ")[2]).passed, question.solution


@pytest.mark.parametrize("name", QUESTIONS)
def test_seeds_give_other_numbers(name: str) -> None:
    """The same seed gives the same question. Twelve students get at least nine different questions."""
    assert asked(name, 5) == asked(name, 5)
    assert len({asked(name, seed).text for seed in range(12)}) >= 9
    assert len({asked(name, seed).answer for seed in range(12)}) >= 9


@pytest.mark.parametrize("name", [name for name in QUESTIONS if asked(name).command])
def test_the_command_of_a_solution_shows_the_figure(name: str, capsys: Capture) -> None:
    """Where the JSON of the command has the answer itself."""
    keys = {"parameters": "total", "moe-active": "active", "forward-flops": "total_flops", "kv-cache": "bytes_total"}
    question = asked(name, 3)
    assert run([*question.command.split()[1:], "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    if name in keys:
        (model,) = document["models"]
        assert question.answer == {**model, **model.get("parameters", {})}[keys[name]]


def test_answers_of_published_sources() -> None:
    """CS336 of Stanford asks for GPT-2 XL: 1,557,611,200 parameters, and about 3.5 TFLOPs for 1,024 tokens."""
    assert asked("parameters").answer == 1_557_611_200
    assert asked("forward-flops").answer == pytest.approx(3.507e12, rel=1e-3)
    assert asked("attention-share").answer == pytest.approx(48 * 4 * 1024**2 * 1600 / 3.5067e12, rel=1e-3)
    assert asked("training-states").answer == 16 * 1_557_611_200
    assert asked("moe-active").answer == 12_879_925_248  # Mixtral's report: 13B active parameters
    assert asked("kv-cache").answer == 2 * 32 * 8 * 128 * 8192 * 2
    assert asked("score-bytes").answer == 12 * 8 * 12 * 1024**2 * 4
    assert asked("lora-parameters").answer == 6_815_744  # peft prints this number for Llama 3 8B, r=16, q and v
    assert asked("training-days").answer == pytest.approx(
        3 * asked("forward-flops").answer * 1024 * 400_000 / (0.5 * 19.5e12 * 86400), rel=1e-9
    )


@pytest.mark.parametrize("seed", [0, 3])
def test_transformers_and_torch_count_the_same_for_the_model_of_the_text(seed: int) -> None:
    """The sizes are read from the text, as a student does."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import GPT2Config, GPT2LMHeadModel

    def size(text: str, pattern: str) -> int:
        match = re.search(pattern, text)
        assert match is not None
        return int(match[1].replace(",", ""))

    question = asked("forward-flops", seed)
    config = GPT2Config(
        n_layer=size(question.text, r"has (\d+) layers"),
        n_embd=size(question.text, r"hidden size ([\d,]+),"),
        n_head=size(question.text, r"(\d+) heads"),
        vocab_size=size(question.text, r"([\d,]+) tokens in its vocabulary"),
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
        tokens = torch.zeros(1, size(question.text, r"one sequence of ([\d,]+) tokens"), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(tokens)
    assert sum(parameter.numel() for parameter in model.parameters()) == asked("parameters", seed).answer
    flops = counter.get_flop_counts()["Global"]
    assert sum(flops.values()) == question.answer


@pytest.mark.parametrize("seed", SEEDS)
def test_the_largest_batch_follows_from_the_two_peaks(seed: int) -> None:
    """A student has only the two peaks of the text. The answer is that of a search with the sizing code."""
    question = asked("largest-batch", seed)
    numbers = [int(word.replace(",", "")) for word in question.text.split() if word.replace(",", "").isdigit()]
    peaks = [number for number in numbers if 5 * 10**9 < number < 8 * 10**10]
    each = (peaks[1] - peaks[0]) / 4
    assert math.floor(8 + (80e9 - peaks[0]) / each) == question.answer


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1,557,611,200", "count", 1557611200),
        ("1.5B", "count", 15 * 10**8),
        ("1_000", "count", 1000),
        ("1.5 billion", "count", 15 * 10**8),
        ("124M params", "count", None),
        ("1 GiB", "bytes", 2**30),
        ("1.5gb", "bytes", 15 * 10**8),
        ("1e3", "bytes", 1000),
        ("28.5%", "share", Fraction(57, 200)),
        ("0.285", "share", Fraction(57, 200)),
        ("28.5", "share", None),
        ("48h", "days", 2),
        ("2", "days", 2),
        ("4.2 ms", "seconds", Fraction(42, 10000)),
        ("4.5 TFLOPs", "flops", 45 * 10**11),
        ("4.5T", "flops", 45 * 10**11),
        ("-1", "count", None),
        ("1e999", "count", None),
        ("12 apples", "count", None),
        ("1 GiB", "count", None),
        ("", "count", None),
        ("1" * 200, "count", None),
    ],
)
def test_answers_have_units(text: str, kind: Any, value: Any) -> None:
    """None: the text is refused."""
    if value is None:
        with pytest.raises(LLMBenchError, match="--answer"):
            parse_answer(text, kind)
    else:
        assert parse_answer(text, kind) == value


def test_the_example_has_the_size_of_the_answer() -> None:
    for name in QUESTIONS:
        question = asked(name, 0)
        example = parse_answer(EXAMPLES[question.kind][0].split(" or ")[0], question.kind)
        assert 1e-4 < example / Fraction(question.answer) < 1e4, name


def test_a_wrong_answer_says_what_is_wrong() -> None:
    assert "GB and GiB" in grade(asked("kv-cache"), "1 GB").message
    assert "12·L·D²" in grade(asked("parameters"), str(12 * 48 * 1600**2)).message
    assert "must be exact" in grade(asked("parameters"), "1.5576B").message
    assert "by a factor of 2" in grade(asked("score-bytes"), str(asked("score-bytes").answer * 2)).message
    assert "1557" not in grade(asked("parameters"), "1.5B").message


# Functions


@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_functions_pass(name: str) -> None:
    exercise = load_exercise(name)
    assert isinstance(exercise, Function)
    for function, seed in ((getattr(solutions, exercise.name), 0), (exercise.reference, 1)):
        count, difference = check_cases(exercise, function, seed=seed)
        assert difference is None, difference
        assert count >= 5


def softmax_without_maximum(scores: torch.Tensor) -> torch.Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def attention_with(change: str) -> Any:
    """Causal attention with one mistake."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        S, T = q.shape[-2], k.shape[-2]
        if q.shape[1] != k.shape[1]:
            copies = q.shape[1] // k.shape[1]
            k, v = (x.repeat(1, copies, 1, 1) if change == "order" else x.repeat_interleave(copies, 1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / (1 if change == "scale" else q.shape[-1] ** 0.5)
        shift = 0 if change == "shift" else T - S
        hidden = torch.ones(S, T, dtype=torch.bool).triu(shift + (0 if change == "strict" else 1))
        scores = scores if change == "mask" else scores.masked_fill(hidden, -torch.inf)
        return (softmax_without_maximum if change == "overflow" else torch.softmax)(scores, *(
            () if change == "overflow" else (-1,)
        )) @ v  # fmt: skip

    return attention


def wrong_rope(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Neighbouring channels are a pair."""
    mixed = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    turned = solutions.rope(mixed, positions, theta)
    return torch.stack(turned.chunk(2, -1), -1).flatten(-2)


def block_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: int) -> torch.Tensor:
    """The textbook's mistake: one softmax per block."""
    parts = zip(k.split(block), v.split(block), strict=True)
    return sum((q @ keys.T / q.shape[-1] ** 0.5).softmax(-1) @ values for keys, values in parts)


def wrong_adamw(change: str) -> Any:
    def step(w: Any, g: Any, m: Any, v: Any, t: int, lr: float, beta1: float, beta2: float, eps: float, decay: float):
        if change == "coupled":
            return solutions.adamw_step(w, g + decay * w, m, v, t, lr, beta1, beta2, eps, 0.0)
        if change == "bias":
            return solutions.adamw_step(w, g, m, v, 10**6, lr, beta1, beta2, eps, decay)
        new, m, v = solutions.adamw_step(w, g, m, v, t, lr, beta1, beta2, 0.0, decay)
        return new, m, v

    return step


MISTAKES = {
    "rmsnorm: no eps": lambda x, weight, eps: solutions.rmsnorm(x, weight, 0.0),
    "rmsnorm: eps outside": lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight,
    "rmsnorm: LayerNorm": lambda x, weight, eps: torch.nn.functional.layer_norm(x, x.shape[-1:], weight, eps=eps),
    "rmsnorm: first dimension": lambda x, weight, eps: x * torch.rsqrt(x.square().mean(0) + eps) * weight,
    "layernorm: variance of samples": lambda x, weight, bias, eps: (
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias
    ),
    "layernorm: mean of squares": lambda x, weight, bias, eps: (
        (x - x.mean(-1, keepdim=True))
        / ((x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2 + eps).sqrt() * weight + bias
    ),
    "layernorm: eps outside": lambda x, weight, bias, eps: (
        (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + eps) * weight + bias
    ),
    "sinusoidal-positions: halves": lambda positions, width: torch.cat(
        [solutions.sinusoidal_positions(positions, width)[:, start::2] for start in (0, 1)], -1
    ),
    "sinusoidal-positions: from 0": lambda positions, width: solutions.sinusoidal_positions(
        torch.arange(len(positions)).float(), width
    ),
    "rope: neighbours": wrong_rope,
    "rope: other direction": lambda x, positions, theta: solutions.rope(x, -positions, theta),
    "rope: positions from 0": lambda x, positions, theta: solutions.rope(x, torch.arange(x.shape[-2]), theta),
    "rope: base is fixed": lambda x, positions, theta: solutions.rope(x, positions, 10000.0),
    "alibi-slopes: powers only": lambda num_heads: [2 ** (-8 * (h + 1) / num_heads) for h in range(num_heads)],
    "alibi-slopes: sign": lambda num_heads: [-slope for slope in solutions.alibi_slopes(num_heads)],
    "causal-attention: scale": attention_with("scale"),
    "causal-attention: mask": attention_with("mask"),
    "causal-attention: shift": attention_with("shift"),
    "causal-attention: strict": attention_with("strict"),
    "causal-attention: overflow": attention_with("overflow"),
    "gqa-attention: order": attention_with("order"),
    "gqa-attention: mask": attention_with("mask"),
    "flash-attention: softmax per block": block_softmax,
    "swiglu: gate and up": lambda x, gate, up, down: solutions.swiglu(x, up, gate, down),
    "swiglu: GELU": lambda x, gate, up, down: (torch.nn.functional.gelu(x @ gate.T) * (x @ up.T)) @ down.T,
    "moe-routing: not normalised": lambda logits, k: torch.topk(logits.softmax(-1), k),
    "moe-routing: order": lambda logits, k: tuple(x.flip(-1) for x in solutions.moe_routing(logits, k)),
    "cross-entropy: sum": lambda logits, targets: solutions.cross_entropy(logits, targets) * len(targets),
    "cross-entropy: overflow": lambda logits, targets: -softmax_without_maximum(logits)[
        torch.arange(len(targets)), targets.clamp(min=0)
    ].log()[targets >= 0].mean(),
    "cross-entropy: ignored": lambda logits, targets: solutions.cross_entropy(logits, targets.clamp(min=0)),
    "adamw-step: coupled decay": wrong_adamw("coupled"),
    "adamw-step: no bias correction": wrong_adamw("bias"),
    "adamw-step: no eps": wrong_adamw("eps"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_fail(mistake: str) -> None:
    exercise = load_exercise(mistake.partition(":")[0])
    assert isinstance(exercise, Function)
    _, difference = check_cases(exercise, MISTAKES[mistake])
    assert difference is not None
    assert difference.case
    assert "differ" in difference.message or "finite" in difference.message


def test_every_function_has_a_mistake() -> None:
    assert {mistake.partition(":")[0] for mistake in MISTAKES} == set(FUNCTIONS)


def test_the_first_element_that_differs_is_shown() -> None:
    exercise = load_exercise("rmsnorm")
    assert isinstance(exercise, Function)

    def one_wrong(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = solutions.rmsnorm(x, weight, eps)
        if out.shape == (2, 3, 8):
            out[1, 2, 5] += 0.01
            out[1, 2, 7] += 0.5
        return out

    _, difference = check_cases(exercise, one_wrong)
    assert difference is not None
    assert difference.index == (1, 2, 5)
    assert difference.shape == (2, 3, 8)
    assert difference.got == pytest.approx(difference.expected + 0.01, abs=1e-6)
    assert difference.message == "2 of 48 elements differ"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, weight, eps: None, "returns None (a `return` may be missing)"),
        (lambda x, weight, eps: solutions.rmsnorm(x, weight, eps)[..., :1], "returns shape [2, 3, 1], but [2, 3, 8]"),
        (lambda x, weight, eps: solutions.rmsnorm(x, weight, eps).double(), "returns float64, but float32"),
        (lambda x, weight, eps: "x", "returns a str"),
        (lambda x, weight, eps: x.mul_(2), "the function changes its argument `x`"),
    ],
)
def test_faults_beside_the_values(function: Any, message: str) -> None:
    exercise = load_exercise("rmsnorm")
    assert isinstance(exercise, Function)
    _, difference = check_cases(exercise, function)
    assert difference is not None
    assert message in difference.message


def test_lists_and_arrays_are_results_too() -> None:
    exercise = load_exercise("rmsnorm")
    assert isinstance(exercise, Function)
    for convert in (torch.Tensor.tolist, torch.Tensor.numpy):
        assert check_cases(exercise, lambda convert=convert, **inputs: convert(solutions.rmsnorm(**inputs)))[1] is None


def test_an_exception_names_its_case() -> None:
    exercise = load_exercise("rope")
    assert isinstance(exercise, Function)
    with pytest.raises(CaseError, match=r"x \[1, 1, 4, 8\]") as caught:
        check_cases(exercise, lambda x, positions: x)
    assert isinstance(caught.value.__cause__, TypeError)


# The command


def check(capsys: Capture, *arguments: str, code: int) -> Any:
    assert run(["exercise", "check", *arguments, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)["checks"]


def test_a_file_is_checked_in_its_own_process(tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "random.py"  # its name is that of a module of the standard library
    file.write_text(
        "import torch\n\nprint('text of the student')\n\n\ndef swiglu(x, gate, up, down):\n"
        "    if x.dim() == 1:\n        return x @ gate\n"
        "    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T\n"
    )
    (row,) = check(capfd, f"{file}:swiglu", code=1)
    assert (row["passed"], row["cases"], row["case"], row["line"]) == (False, 1, "one vector", 8)
    assert row["code"] == "return x @ gate"
    assert "RuntimeError" in row["message"]


LEAVING = """
import os, time

print('before \\x1b]0;title\\x07')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({number!r}, 'w').write(str(os.getpid()))
    time.sleep(45)
while not os.path.exists({number!r}) or not open({number!r}).read():
    time.sleep(0.01)
print('x' * 2**17)
os._exit(0)


def rope(x, positions, theta):
    pass
"""


def test_a_process_that_ends_or_hangs_is_a_failure(tmp_path: Path, capfd: Any) -> None:
    """The processes that it leaves behind end too, and its output is shown as far as it is safe."""
    file, number = tmp_path / "my.py", tmp_path / "number"
    file.write_text(LEAVING.format(number=str(number)))
    start = time.monotonic()
    assert run(["exercise", "check", str(file), "--format", "json"]) == 1
    out, err = capfd.readouterr()
    (row,) = json.loads(out)["checks"]
    assert row["message"] == "the process ended with exit code 0 before the check was done"
    assert time.monotonic() - start < 40
    assert err.startswith("before \\x1b]0;title\\x07\nxxx")
    assert err.endswith("x\n(the output after 64 KiB is not shown)\n")
    assert len(err) < 2**16 + 100
    if sys.platform == "linux":
        assert not _runs(number.read_text())
    (row,) = check(capfd, f"{file}:rope", "--timeout", "0.05", code=1)
    assert row["message"] == "the function did not end within 0.05 s"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the limit")
def test_a_function_that_needs_too_much_memory_is_a_failure(tmp_path: Path, capsys: Capture) -> None:
    """Both the memory of Python and that of torch have the limit."""
    file = tmp_path / "my.py"
    file.write_text(
        "import torch\n\n\ndef rope(x, positions, theta):\n    try:\n        bytearray(5 * 2**30)\n"
        "    except MemoryError:\n        return torch.zeros(2**30)\n"
    )
    (row,) = check(capsys, str(file), code=1)
    assert row["message"] == "RuntimeError: the function needs more than 2 GiB of memory"
    assert (row["line"], row["code"]) == (8, "return torch.zeros(2**30)")


FORGED = """
import os, sys
import msgspec
folder = sys.orig_argv[-1].split("'")[1]
result = os.path.join(folder, "result")
{attack}
os._exit(0)
def rope(): pass
"""


@pytest.mark.parametrize(
    "attack",
    [
        "os.mkfifo(result)",
        "open(result, 'wb').write(msgspec.msgpack.encode((99, None, '')))",
    ],
    ids=["pipe", "passed"],
)
def test_a_result_that_the_check_did_not_write_is_not_believed(attack: str, tmp_path: Path) -> None:
    file = tmp_path / "forged.py"
    file.write_text(FORGED.format(attack=attack))
    reply = run_check("rope", file, seed=0, timeout_s=60, show=lambda text: None)
    assert reply.fault is not None
    assert reply.fault.message == "the process ended with exit code 0 before the check was done"


def test_a_fault_has_the_figures_that_are_shown() -> None:
    with pytest.raises(ValueError, match="has an error and a budget"):
        Fault(message="x", index=(1,))


def _runs(number: str) -> bool:
    """Whether the process exists, and has not ended yet."""
    try:
        return Path("/proc", number, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_of_a_student_ends_with_the_command(end: signal.Signals, tmp_path: Path) -> None:
    number = tmp_path / "number"
    file = tmp_path / "hang.py"
    file.write_text(
        f"import os\nopen({str(number)!r} + '.part', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(number)!r} + '.part', {str(number)!r})\nwhile True: pass\ndef rope(): pass\n"
    )
    command = [sys.executable, "-m", "llmbench", "exercise", "check", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not number.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(end)
    process.communicate(timeout=20)
    assert process.returncode == (130 if end == signal.SIGTERM else -end)
    while _runs(number.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_question_is_checked(capsys: Capture) -> None:
    (row,) = check(capsys, "parameters", "--answer", "1,557,611,200", code=0)
    assert (row["passed"], row["answer"], row["tolerance"]) == (True, 1557611200, 0)
    (row,) = check(capsys, "parameters", "--answer", "1.56B", code=1)
    assert row["message"] == "wrong: near, but the answer must be exact"


@pytest.mark.parametrize("name", EXERCISES)
def test_show_fits_into_80_columns(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["exercise", "show", name]) == 0
    text = capsys.readouterr().out
    lines = [[letter for letter in line if not unicodedata.combining(letter)] for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "hint: " in text


def test_the_solution_is_shown_on_request_only(capsys: Capture) -> None:
    for format in ("table", "json"):
        assert run(["exercise", "show", "parameters", "--format", format]) == 0
        assert "1,557,611,200" not in capsys.readouterr().out.replace("1557611200", "1,557,611,200")
    assert run(["exercise", "show", "parameters", "--solution"]) == 0
    assert "1,557,611,200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "rope"], "rope is a function"),
        (["check", "parameters"], "parameters is a question, so --answer is needed"),
        (["check", "parameters", "--answer", "many"], "--answer many: this is not a number"),
        (["check", "none.py"], "cannot read none.py: No such file or directory"),
        (["check", "empty.py"], "empty.py defines no function of an exercise"),
        (["check", "bad.py:rope"], "bad.py is not valid Python: line 1"),
        (["check", "empty.py", "--answer", "1"], "--answer is for questions"),
        (["check", "other.py:rope"], "other.py defines no function `rope`"),
        (["check", "other.py:parameters"], "parameters is a question, not a function"),
        (["check", "other.py:rpoe"], "unknown exercise `rpoe`"),
        (["check", "other.py", "--timeout", "0"], "is not a number of seconds"),
        (["show", "swigli"], "unknown exercise `swigli`"),
        (["show", "rope", "--solution"], "--solution: rope is a function"),
    ],
)
def test_wrong_input_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.py").write_text("x = 1\n")
    Path("bad.py").write_text("def rope(:\n")
    Path("other.py").write_text("def swiglu():\n    pass\n")
    assert run(["exercise", *arguments]) == 2
    assert message in capsys.readouterr().err
