"""`llmbench choose`: choose the parts of a model for a goal, a context length, a device and a number of parameters."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from llmbench.cli.options import As, Output, answer, prints_tables, token_count
from llmbench.cli.written import write_file
from llmbench.errors import LLMBenchError
from llmbench.learn.choose import Choice, Decided, Option, choose
from llmbench.learn.choose.candidate import Candidate, Setting
from llmbench.learn.choose.goals import GOALS, Goal, GoalName
from llmbench.report.document import Block, Command, Document, Table, table, transposed
from llmbench.report.fields import Field, fitted, record, records
from llmbench.report.units import heading, plural
from llmbench.spec.catalog import find_device_head
from llmbench.spec.files import write_spec

FILE = "my-model.toml"
"""The name of the model's file in the commands, if --spec names none."""
MOST_CONTEXT = 2**24
"""The largest number of tokens. The longest context of a bundled model is 10 million tokens."""


def _parameters(text: str | int) -> int:
    """Parse the value of --params, such as 7b. Raises BadParameter for another text."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)([kmbt]?)", str(text)[:30].lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of parameters, such as 7b or 350m")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]])


GoalOption = Annotated[
    GoalName,
    typer.Option(
        "--goal",
        metavar="GOAL",
        help="What matters most: " + "; ".join(f"{name}: {goal.wish}" for name, goal in GOALS.items()) + ".",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--context",
        metavar="TOKENS",
        help="Tokens of a request, for example 32k. Default: 8k.",
        parser=token_count,
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Device: a name from `llmbench specs list --devices`.")
]
Parameters = Annotated[
    int,
    typer.Option(
        "--params",
        metavar="N",
        help="Number of parameters in total, for example 350m. Default: 7b.",
        parser=_parameters,
        show_default=False,
    ),
]
SpecFile = Annotated[
    Path | None,
    typer.Option(
        "--spec", metavar="FILE", help="Write the spec of the chosen model to a .toml file.", show_default=False
    ),
]

FIGURES: tuple[Field[Candidate], ...] = (
    Field("parameters", "parameters", "parameters", description="number of parameters"),
    Field("active_parameters", "active", "parameters", description="number of parameters that one token uses"),
    Field("layers", "layers", "count", description="number of layers"),
    Field("width", "width", "count", description="width of the feed-forward, or of one expert"),
    Field(
        "position_parameters",
        "position table",
        "count",
        description="number of parameters of the table of learned positions",
    ),
    Field(
        "longest_position",
        "last position",
        "count",
        text=lambda candidate: "no end" if candidate.longest_position is None else None,
        description="the last position that the encoding has, counted from 1; null: it has no end",
    ),
    Field(
        "kv_bytes_per_token",
        "cache per token",
        "kib",
        description="bytes that one more token adds to the cache of `context` tokens",
    ),
    Field("cache_bytes", "cache", "gib", description="bytes of the cache of one request"),
    Field(
        "footprint_bytes", "weights + cache", "gib", description="bytes of the weights and of the cache of one request"
    ),
    Field("users", "users", "count", description="number of requests for which the devices have memory"),
    Field(
        "longest_tokens",
        "longest request",
        "count",
        description="tokens of the longest request for which the devices have memory, up to the last position of the "
        "model, and whatever its context length is; 134,217,728 stands for no limit",
    ),
    Field(
        "token_s",
        "time per token",
        "ms",
        description="least seconds of a decoding step of one request: the bytes of weights and cache, divided by the "
        "bandwidth of the devices",
    ),
    Field(
        "train_flops_per_token",
        "training per token",
        "gflops",
        description="FLOPs of a training step per token, without recomputation",
    ),
    Field(
        "activation_bytes",
        "activations",
        "gib",
        description="bytes that a training step with one sequence saves for its backward pass",
    ),
    Field(
        "train_peak_bytes",
        "training peak",
        "gib",
        description="peak bytes of a training step with one sequence on one device: mixed precision, AdamW",
    ),
    Field(
        "score_share", "share of scores", "percent", description="share of attention scores in the FLOPs of a prefill"
    ),
)
_FIGURE = {field.name: field for field in FIGURES}
MODEL = (
    *("parameters", "active_parameters", "kv_bytes_per_token", "cache_bytes", "users", "longest_tokens"),
    *("token_s", "train_flops_per_token", "train_peak_bytes"),
)
"""The figures of the chosen model that the last table shows."""

OPTIONS: tuple[Field[Option], ...] = (
    Field(
        "name",
        "alternative",
        value=lambda option: option.alternative.name,
        text=lambda option: ("* " if option.chosen else "  ") + option.alternative.name,
        wraps=True,
        description="the alternative",
    ),
    Field("chosen", description="whether it is chosen"),
    Field(
        "quality",
        value=lambda option: option.alternative.quality,
        description="what papers report: `first`, the best quality of the alternatives; `close`, a quality close to "
        "it; `loss`, a clear loss",
    ),
    Field(
        "report",
        "from papers",
        value=lambda option: option.alternative.report,
        wraps=True,
        description="what papers say about the quality, with the source. It is cited, not computed",
    ),
    Field(
        "figures",
        value=lambda option: record(FIGURES, option.candidate),
        description="figures of the model with this alternative, as in `model`",
    ),
)
DECIDED: tuple[Field[Decided], ...] = (
    Field("decision", value=lambda decided: decided.name, description="name of the decision"),
    Field(
        "question",
        "decision",
        value=lambda decided: decided.decision.question,
        wraps=True,
        description="what is decided",
    ),
    Field(
        "choice",
        "choice",
        value=lambda decided: decided.chosen.alternative.name,
        wraps=True,
        description="the chosen alternative",
    ),
    Field("why", "why", wraps=True, description="reason for the choice, with the figures"),
    Field("note", value=lambda decided: decided.decision.note, description="how to read the figures"),
    Field("command", description="the command that checks the figures", value=lambda decided: decided.decision.command),
    Field(
        "options",
        value=lambda decided: records(OPTIONS, decided.options),
        description="the alternatives, in the order of their quality, each with the fields of the next table",
    ),
)


@prints_tables
def command(
    goal: GoalOption = "serve",
    context: Context = 8192,
    device: DeviceOption = "h100",
    params: Parameters = 7 * 10**9,
    spec: SpecFile = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Choose positions, KV heads, feed-forward, windows and experts for a goal, with computed evidence.

    Each decision compares alternatives with the same number of parameters. The one with the best quality in papers is
    chosen, unless another one is at least 1.25 times better for the goal and papers report a quality close to the best.
    All figures are computed. What papers report is cited, because arithmetic cannot settle it. Each decision names the
    command that checks its figures on the model that --spec writes.

    Weights and cache are in 16 bits. If one device is too small for one request, the smallest number of devices
    that suffices is used.

    Examples:

      llmbench choose --goal serve --context 32k --device h100 --params 7b

      llmbench choose --goal train --params 350m --device rtx-4090 --context 2k

      llmbench choose --goal long-context --context 128k --params 8b --spec chosen.toml

      llmbench choose --goal small-device --device m3-max-128gb --format markdown
    """
    if context > MOST_CONTEXT:
        raise LLMBenchError(f"--context {context:,}: at most {MOST_CONTEXT:,} tokens")
    if spec is not None and spec.suffix != ".toml":
        raise LLMBenchError(f"--spec {spec}: the name of a spec ends with .toml")
    if spec is not None and os.path.lexists(spec):
        raise LLMBenchError(f"--spec {spec} exists already", hint="give the name of a new file, or remove this one")
    if spec is not None and output is not None and output.absolute() == spec.absolute():
        raise LLMBenchError(f"--spec and --output are both {spec}", hint="give two names")
    setting = Setting(context, find_device_head(device).name, params)
    choice = choose(goal, setting)
    inputs = {"goal": goal, "context": context, "device": device, "params": params, "spec": spec and str(spec)}
    if spec is not None:
        named = msgspec.structs.replace(choice.candidate.spec, name=spec.stem)
        write_file(spec, lambda stream: stream.write(write_spec(named)), option="--spec", replaces=False)
    answer(document(goal, choice, inputs, str(spec) if spec else FILE), format, output)


def document(goal: GoalName, choice: Choice, inputs: dict[str, Any], file: str) -> Document:
    """Return the answer. `goal`: name of the goal. `inputs`: the options. `file`: name of the model's file."""
    rows = records(DECIDED, choice.decided)
    for row in rows:
        row["command"] = _command(row["command"], choice, file)
    setting = choice.setting
    devices = setting.device if setting.devices == 1 else f"{setting.devices} × {setting.device}"
    title = f"{choice.goal.wish}: {plural(setting.context, 'token')} · {devices} · {setting.parameters:,} parameters"
    first = Block(
        answer=_reached(choice),
        headline=_sentence(title),
        table=table([field for field in DECIDED if field.name in ("question", "choice")], choice.decided),
        lines=[
            f"goal figure: {choice.goal.noun}; {'more' if choice.goal.large else 'less'} is better",
            "* marks the choice. Figures are computed; quality is cited from papers",
            *_fewer_devices(choice),
        ],
    )
    blocks = [
        first,
        *(_decision_block(decided, choice, file) for decided in choice.decided),
        _model_block(choice, file, written=inputs["spec"] is not None),
    ]
    return Document(
        command="choose",
        inputs=inputs,
        rows_key="decisions",
        rows=rows,
        blocks=blocks,
        also={
            "goal": {"name": goal, "wish": choice.goal.wish, "figure": choice.goal.field, "large": choice.goal.large},
            "devices": setting.devices,
            "model": record(FIGURES, choice.candidate),
            "spec": write_spec(choice.candidate.spec),
        },
        tables=[_options_table(choice)],
    )


def _reached(choice: Choice) -> str:
    """Return a sentence with the figure of the goal that the chosen model reaches."""
    field = _FIGURE[choice.goal.field]
    (fitting,) = fitted([msgspec.structs.replace(field, scale=field.name)], [choice.candidate])
    return f"With the choices below, {heading(choice.goal.noun, fitting.unit)}: {fitting.shown(choice.candidate)}."


def _fewer_devices(choice: Choice) -> list[str]:
    """Return a line if the chosen model needs fewer devices than the model with which the comparison begins."""
    setting = choice.setting
    own = setting.on_enough_devices(choice.candidate).devices
    if own == setting.devices:
        return []
    return [
        f"the figures are those of {setting.devices} × {setting.device}, because the model before the first decision "
        f"(multi-head attention, no window) needs them; the chosen model fits on {own} × {setting.device}"
    ]


def _command(text: str, choice: Choice, file: str) -> str:
    return text.format(model=shlex.quote(file), context=choice.setting.context)


def _options_table(choice: Choice) -> Table:
    """Return all alternatives as one table for CSV."""
    items = [
        {"decision": decided.name} | record(OPTIONS[:4], option) | record(FIGURES, option.candidate)
        for decided in choice.decided
        for option in decided.options
    ]
    return table([Field[dict[str, Any]](name) for name in items[0]], items)


def _figures(goal: Goal, decided: Decided) -> list[Field[Option]]:
    """Return the columns of a decision: the figure of the goal, then the figures of the decision."""
    names = dict.fromkeys((goal.field, *decided.decision.columns))
    candidates = [option.candidate for option in decided.options]
    columns = []
    for name in names:
        (field,) = fitted([msgspec.structs.replace(_FIGURE[name], scale=name)], candidates)
        columns.append(_of_option(field))
    return columns


def _of_option(field: Field[Candidate]) -> Field[Option]:
    """Return the field of a candidate as a field of an option."""
    text = field.text
    return Field(
        field.name,
        field.heading,
        field.unit,
        value=lambda option: field.value_of(option.candidate),
        text=None if text is None else lambda option: text(option.candidate),
    )


def _decision_block(decided: Decided, choice: Choice, file: str) -> Block:
    name, report = (field for field in OPTIONS if field.heading)
    return Block(
        headline=f"{_sentence(decided.decision.question)}?",
        table=table([name, *_figures(choice.goal, decided), report], decided.options),
        lines=[decided.why, decided.decision.note],
        commands=[Command("check it:", _command(decided.decision.command, choice, file))],
    )


def _model_block(choice: Choice, file: str, *, written: bool) -> Block:
    fields = fitted([msgspec.structs.replace(_FIGURE[name], scale=name) for name in MODEL], [choice.candidate])
    setting, model = choice.setting, shlex.quote(file)
    gpus = f" --gpus {setting.devices}" if setting.devices > 1 else ""
    verdict = "fits on" if choice.candidate.trains_on_one_device else "does not fit on"
    where = f"{model} --device {setting.device}"
    served = f"{gpus} --engine ideal --weights bf16"
    longest = choice.candidate.longest_tokens
    longer = Command(
        "check the longest request that memory allows, which needs a longer context length:",
        f"llmbench fit {where} --seq {longest} --set max_position_embeddings={longest}{served}",
    )
    return Block(
        headline="The chosen model",
        table=transposed(fields, [("value", choice.candidate)]),
        lines=[
            f"a training step with one sequence {verdict} one {setting.device}",
            *([] if written else [f"--spec {model} writes the model for these commands"]),
        ],
        commands=[
            Command("check its users:", f"llmbench fit {where} --seq {setting.context}{served}"),
            *([longer] if longest > setting.context else []),
            Command("check its training:", f"llmbench memory {where} --seq {setting.context}"),
        ],
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
