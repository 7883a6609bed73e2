"""Sweeps and prices of `llmbench fit`, and what its screens say."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from llmbench.cli.application import run

Capture = pytest.CaptureFixture[str]


def screen(capsys: Capture, *words: str) -> str:
    """Run a command, and return what it prints on one line."""
    run(list(words))
    return " ".join(capsys.readouterr().out.split())


def test_a_sweep_has_a_row_per_case_in_every_format(capsys: Capture) -> None:
    sweep = ["--seq", "8k,32k", "--users", "1,16", "--kv-dtype", "bf16,fp8", "--weights", "bf16,gptq,bits=8"]
    question = ["fit", "llama3.1-8b", "--device", "l40s", *sweep]
    assert run([*question, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    cases = {(row["seq_len"], row["users"], row["kv_dtype"], row["weights"]) for row in rows}
    assert len(rows) == len(cases) == 16
    assert {row["weights"] for row in rows} == {"bf16", "gptq,bits=8"}
    run([*question, "--format", "json"])
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["fits"]) == 16
    assert answer["inputs"]["seq_len"] == [8192, 32768]
    assert answer["inputs"]["weights"] == ["bf16", "gptq,bits=8"]
    # Each row is the answer to the single question.
    for row, alone in zip(rows, answer["fits"], strict=True):
        assert int(row["capacity"]) == alone["capacity"]
    run(["fit", "llama3.1-8b", "--device", "l40s", "--seq", "32k", "--users", "16", "--kv-dtype", "fp8", "-f", "json"])
    (single,) = json.loads(capsys.readouterr().out)["fits"]
    (same,) = [
        row
        for row in answer["fits"]
        if (row["seq_len"], row["users"], row["kv_dtype"], row["weights"]) == (32768, 16, "fp8", "bf16")
    ]
    assert (same["capacity"], same["fits"]) == (single["capacity"], single["fits"])
    table = screen(capsys, *question)
    assert f"fits in {sum(row['fits'] for row in answer['fits'])} of 16 cases" in table


def test_a_sweep_without_a_device_names_the_best_one_of_each_case(capsys: Capture) -> None:
    run(["fit", "llama3.1-8b", "--seq", "8k,128k", "--price", "l40s=1,h200=5", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    run(["fit", "llama3.1-8b", "--seq", "8k,128k", "--price", "l40s=1,h200=5"])
    lines = capsys.readouterr().out.splitlines()
    for tokens in ("8192", "131072"):
        costs = [float(row["price_per_hour"]) for row in rows if row["seq_len"] == tokens and row["price_per_hour"]]
        (line,) = [line for line in lines if line.startswith((f"  {int(tokens):,} ", f"    {int(tokens):,} "))]
        assert "l40s" in line
        assert float(line.split()[-1]) == min(costs)


def test_too_large_a_sweep_is_refused(capsys: Capture) -> None:
    assert run(["fit", "llama3-8b", "--seq", "1..1m", "--users", "1..1024"]) == 2
    assert "combinations" in capsys.readouterr().err


def test_prices_order_the_devices_and_the_answer_names_all_that_are_cheapest(capsys: Capture) -> None:
    run(["fit", "qwen3-32b", "--seq", "32k", "--users", "16", "--price", "2"])
    lines = capsys.readouterr().out.splitlines()
    rows = [found for line in lines if (found := re.fullmatch(r"  (\S+) +(\d+) .*? (\d+)", line))]
    prices = [int(row[3]) for row in rows]
    assert prices == sorted(prices)
    text = " ".join(" ".join(lines).split())
    cheapest = re.search(r"The cheapest choices are (.*?), for ([\d.]+) per hour each", text)
    assert cheapest is not None
    assert float(cheapest[2]) == prices[0]
    named = {part.split()[-1] for part in re.split(r", | and ", cheapest[1])}
    assert named == {row[1] for row, price in zip(rows, prices, strict=True) if price == prices[0]}


def test_a_window_explains_why_the_tokens_differ(capsys: Capture) -> None:
    for model in ("gpt-oss-20b", "gemma3-27b"):
        text = screen(capsys, "fit", model, "--device", "h200")
        assert "as if every layer kept all tokens" in text
        assert "so a long request takes fewer bytes per token than a short one" in text
        assert "the context length of the model" in text
    text = screen(capsys, "fit", "llama3.1-8b", "--device", "h200")
    assert "fewer bytes per token" not in text


def test_the_screen_says_whose_total_it_shows(capsys: Capture) -> None:
    for device, words in (
        ("h100", "total that CUDA reports"),
        ("h20", "total that the driver reports"),
        ("mi325x", "total of the datasheet"),
    ):
        assert words in screen(capsys, "fit", "llama3.1-8b", "--device", device)


def test_a_request_has_8192_tokens_or_the_context_length_by_default(capsys: Capture) -> None:
    assert "1 request of 1,024 tokens" in screen(capsys, "fit", "gpt2", "--device", "l4")
    assert "1 request of 8,192 tokens" in screen(capsys, "fit", "llama3.1-8b", "--device", "h100")
    assert run(["fit", "gpt2", "--device", "l4", "--seq", "2048"]) == 2
    assert "learned positions cover only 1,024" in capsys.readouterr().err


def test_a_longer_request_than_the_context_is_refused(capsys: Capture) -> None:
    for engine in ("vllm", "llamacpp", "ideal"):
        for seq in ("8193", "8k,32k"):
            assert run(["fit", "llama3-8b", "--device", "h100", "--engine", engine, "--seq", seq]) == 2
            assert "has a context length of 8,192 tokens" in capsys.readouterr().err
    assert run(["fit", "llama3-8b", "--seq", "32k"]) == 2
    # The change that the hint names makes it an answer.
    hint = capsys.readouterr().err
    extended = "max_position_embeddings=32768"
    assert f"--set {extended}" in hint
    text = screen(capsys, "fit", "llama3-8b", "--device", "h100", "--seq", "32k", "--set", extended)
    assert "can have up to 32,768 tokens, the context length of the model" in text


def test_a_command_says_which_requests_it_allows(capsys: Capture) -> None:
    for engine, limit in (("vllm", "--max-model-len 4096"), ("llamacpp", "-c 8192 -np 2")):
        question = ["llama3-8b", "--device", "h100", "--engine", engine, "--seq", "4k", "--users", "2"]
        text = screen(capsys, "fit", *question)
        command = text.partition("which has room for 2 requests of up to 4,096 tokens each:")[2]
        assert limit in command


def test_the_pools_of_an_engine_agree_with_its_answer(capsys: Capture) -> None:
    for model, device, users, seq in (
        ("gpt-oss-120b", "h100", 2, "32k"),
        ("gpt-oss-120b", "h100", 3, "32k"),
        ("gpt-oss-120b", "h100", 64, "16k"),
        ("jamba-v0.1", "h200", 62, "16k"),
        ("jamba-v0.1", "h200", 63, "16k"),  # a little more than 100%
    ):
        question = [model, "--device", device, "--engine", "sglang", "--users", str(users), "--seq", seq]
        text = screen(capsys, "fit", *question)
        share = float(re.search(r"([\d.]+)% of the usable memory", text)[1])  # type: ignore[index]
        rooms = [int(room.replace(",", "")) for room in re.findall(r"\(([\d,]+) such requests?\)", text)]
        assert len(rooms) == 2
        assert (share <= 100) == (users <= min(rooms)) == (" fits on " in text)
        if users > min(rooms):
            assert f"Only {min(rooms)} fit" in text


def test_a_price_without_a_value_says_what_it_needs(capsys: Capture) -> None:
    assert run(["fit", "llama3-8b", "--price"]) == 2
    assert "h100=2.5,l40s=1.1" in capsys.readouterr().err


def test_a_number_of_gpus_without_a_device_is_kept(capsys: Capture) -> None:
    run(["fit", "llama3-70b", "--gpus", "4", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    fitting = [row["device"] for row in rows if row["fits"] == "true"]
    assert {row["gpus"] for row in rows if row["device"] in fitting} == {"4"}
    text = screen(capsys, "fit", "llama3-70b", "--gpus", "4")
    assert f"fits on 4 × {fitting[0]}, and on {len(fitting) - 1} other devices" in text
    assert "4 of these are not enough with tp, tp × dp and tp × pp, and default settings: rtx-4070" in text
    assert "fits on no built-in device, with 1 GPU" in screen(capsys, "fit", "llama3.1-405b", "--gpus", "1")


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("llama3.1-8b --device m3-max", "no profile of vLLM on devices of Apple"),
        ("llama3.1-8b --device v100", "do not compute bf16"),
        ("deepseek-v3 --device v100 --gpus 8", "do not compute fp8, and llmbench knows no kernel of vLLM"),
        ("llama3.1-8b --device h100", ""),
    ],
)
def test_the_json_says_why_an_engine_does_not_run(question: str, reason: str, capsys: Capture) -> None:
    code = run(["fit", *question.split(), "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)["fits"]
    assert code == bool(reason)
    assert row["fits"] is (row["cannot_run"] is None) is (row["command"] is not None) is (not reason)
    assert reason in (row["cannot_run"] or "")
    assert not reason or f": {row['cannot_run']}." in screen(capsys, "fit", *question.split())
