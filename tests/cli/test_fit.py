"""Sweeps and prices of `llmbench fit`, and what its screens say."""

from __future__ import annotations

import csv
import io
import json
import re

import msgspec
import pytest

from llmbench.answers.fit import fitted
from llmbench.answers.fit_screen import blocks
from llmbench.cli.application import run
from llmbench.spec.catalog import load_bundled

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
        over = share > 100 or "slightly more than 100%" in text
        assert (not over) == (users <= min(rooms)) == (" fits on " in text)
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


def words(text: str) -> list[list[str]]:
    """The commands on a screen, as lists of words."""
    joined = text.replace("\\\n", " ")
    return [line.split() for line in joined.splitlines() if re.match(r" +(vllm serve|python -m sglang)", line)]


def option(command: list[str], name: str) -> str:
    """The value of an option of a command."""
    return command[command.index(name) + 1]


def test_several_servers_get_the_ranks_that_they_serve(capsys: Capture) -> None:
    def commands(*question: str) -> list[list[str]]:
        run(["fit", *question])
        return words(capsys.readouterr().out)

    first, other = commands("kimi-k2", "--device", "h200", "--gpus", "16", "--seq", "64k", "--users", "64")
    copies, local = int(option(first, "--data-parallel-size")), int(option(first, "--data-parallel-size-local"))
    assert local * int(option(first, "--tensor-parallel-size")) == 8
    assert "--headless" in other
    assert "--headless" not in first
    assert int(option(other, "--data-parallel-start-rank")) + local == copies
    mixture = "deepseek-v3", "--device", "h200", "--layout", "dp=32,ep=32", "--users", "64", "--engine"
    first, other = commands(*mixture, "vllm")
    assert option(other, "--data-parallel-start-rank") == "RANK"
    run(["fit", *mixture, "vllm", "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)["fits"]
    assert row["ranks_other_servers"] == [8, 16, 24]
    assert row["command"].split() == first
    assert row["command_other_servers"].split() == other
    first, other = commands(*mixture, "sglang")
    assert (option(first, "--node-rank"), option(first, "--nnodes")) == ("0", "4")
    assert option(other, "--node-rank") == "RANK"
    (only,) = commands("llama3.1-405b", "--device", "h100", "--layout", "tp=8,pp=2")
    assert option(only, "--distributed-executor-backend") == "ray"
    (one,) = commands("deepseek-v3", "--device", "h200", "--layout", "dp=8,ep=8")
    assert "--data-parallel-size-local" not in one


def test_an_engine_without_settings_for_several_servers_says_so(capsys: Capture) -> None:
    question = "llama3.1-405b", "--device", "h200", "--layout", "tp=8,pp=2", "--engine", "trtllm"
    assert "no settings for 2 servers" in screen(capsys, "fit", *question)


def test_each_copy_of_the_attention_has_a_cache(capsys: Capture) -> None:
    question = "kimi-k2", "--device", "h200", "--gpus", "16", "--seq", "64k", "--users", "64"
    text = screen(capsys, "fit", *question)
    found = re.search(r"each of (\d+) copies has a cache of ([\d,]+) tokens", text)
    most = re.search(r"([\d,]+) such requests fit", text)
    assert found is not None
    assert most is not None
    assert int(found[1]) * (int(found[2].replace(",", "")) // 65536) == int(most[1])


def test_a_share_below_all_is_not_shown_as_all() -> None:
    (row,) = fitted(load_bundled("llama3-8b"), devices=["h100"])
    assert row.fit is not None
    shown = {}
    for filled in (0.994, 0.996, 0.99951, 0.9999999, 1, 1.0000001, 1.0006, 1.02):
        fit = msgspec.structs.replace(row.fit, filled=filled)
        (block,) = blocks([msgspec.structs.replace(row, fit=fit)])
        found = re.search(r"fills (.*) of the usable memory", block.answer)
        assert found is not None
        shown[filled] = found[1]
    assert list(shown.values()) == [
        *("99%", "99.6%", ">99.9%", ">99.9%", "100%", "slightly more than 100%", "100.1%", "102%"),
    ]


def test_devices_without_a_price_are_left_out_of_the_table(capsys: Capture) -> None:
    question = ["fit", "llama3.1-70b", "--users", "16", "--price", "h100=2,h200=3,b200=5"]
    text = screen(capsys, *question)
    run([*question, "--format", "csv"])
    rows = [row for row in csv.DictReader(io.StringIO(capsys.readouterr().out)) if row["fits"] == "true"]
    priced = [row for row in rows if row["price_per_hour"]]
    assert len(priced) == 3
    assert f"{len(rows) - 3} other devices without a price suffice" in text
    table = text.partition("price per hour")[2].partition("other devices")[0]
    assert all((f" {row['device']} " in table) == (row in priced) for row in rows)
    whole = screen(capsys, *question, "--wide")
    assert all(f" {row['device']} " in whole for row in rows)


def test_a_price_of_no_device_is_refused(capsys: Capture) -> None:
    assert run(["fit", "llama3-8b", "--device", "h100", "--price", "h100=2,3"]) == 2
    assert "--price 3: is for all other devices" in capsys.readouterr().err
