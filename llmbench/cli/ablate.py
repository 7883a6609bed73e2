"""`llmbench ablate`: from one design of a model to another, step by step, with size, times and loss of each step."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmbench.cli.ablate_document import document, panels
from llmbench.cli.learning import (
    Batch,
    Data,
    Lrs,
    Plot,
    Rates,
    Seeds,
    Seq,
    Steps,
    about_training,
    check_files,
    progress_of_trainings,
    refuse_large_steps,
    refuse_many_trainings,
    text_of_option,
)
from llmbench.cli.measured import need_torch
from llmbench.cli.options import As, Choices, Output, Set, answer_and_show, load, names, prints_tables
from llmbench.errors import LLMBenchError
from llmbench.learn.experiments.designs import VIEWS, path, questions, size_of
from llmbench.report.units import plural

Model = Annotated[
    str, typer.Argument(metavar="[MODEL]", help="Model whose width, depth and number of heads all designs have.")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="DESIGN",
        help="First design: transformer, gpt2, cs336, llama or deepseek. Default: gpt2.",
        show_default=False,
    ),
]
To = Annotated[
    Choices | None,
    typer.Option(
        "--to",
        metavar="DESIGN",
        help="Last design. A path through other designs: --to llama,deepseek. Default: llama.",
        parser=names,
        show_default=False,
    ),
]
Only = Annotated[
    Choices | None,
    typer.Option(
        "--only",
        metavar="LIST",
        help="Questions of the course CS336 instead of a path, separated by commas: layer_norm_ablation, "
        "pre_norm_ablation, no_pos_emb, swiglu_ablation.",
        parser=names,
        show_default=False,
    ),
]
ViewOption = Annotated[
    Literal["cumulative", "added", "removed", "all"],
    typer.Option(
        "--view",
        help="cumulative: each step keeps the steps before it. added: each step alone, in the first design. removed: "
        "each step undone, in the last design.",
    ),
]


@prints_tables
def command(
    model: Model = "nanogpt-cpu",
    start: From = None,
    to: To = None,
    only: Only = None,
    view: ViewOption = "cumulative",
    lr: Lrs = Rates((1e-3,)),
    seeds: Seeds = 3,
    data: Data = None,
    steps: Steps = 600,
    batch: Batch = 12,
    seq: Seq = 64,
    set: Set = None,
    plot: Plot = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Change a model step by step, from GPT-2 to LLaMA, and show what each step costs and gains.

    A step changes one part: norm, placement of the norms, biases, positions, heads, or feed-forward. Each design trains
    with the same seeds, on the same batches. The difference of two losses has a 95% interval, and the answer says when
    it is within noise. With several learning rates, each design has its best one.

    The order of the steps matters, so `--view all` also shows each step alone, and the last design without it.

    Times are those of this CPU. The presets train 18 models on one core, in about 12 minutes.

    Examples:

      llmbench ablate

      llmbench ablate --from llama --to deepseek --lr 3e-4,1e-3,3e-3

      llmbench ablate --only no_pos_emb,swiglu_ablation -o questions.json
    """
    spec = load(model, set)
    refuse_large_steps(batch, seq)
    rates = list(lr)
    if only is not None and (start is not None or to is not None or view != "cumulative"):
        raise LLMBenchError("--only names whole questions", hint="leave out --from, --to and --view")
    through = [start or "gpt2", *(to or ("llama",))]
    chosen = questions(only) if only is not None else path(through, VIEWS if view == "all" else (view,))
    designs = list(dict.fromkeys(step.design for step in chosen))
    trainings = len(designs) * len(rates) * seeds
    refuse_many_trainings(trainings)
    size = size_of(spec, vocab=spec.vocab_size, context=seq)
    for design in designs:  # refuse a design before torch is imported
        design.spec(size)
    check_files(output, plot)
    content = text_of_option(data)
    content.refuse_short(seq)
    need_torch("ablate")
    from llmbench.learn.data import corpus_of_text
    from llmbench.learn.experiments.ablate import ablate
    from llmbench.learn.settings import Settings
    from llmbench.measure.environment import environment
    from llmbench.model.devices import device_of

    text = corpus_of_text(content)
    size = size._replace(vocab=text.vocab_size)
    settings = Settings(steps=steps, batch=batch, seq_len=seq, lr=rates[0], warmup=steps // 10, validate_every=steps)
    labels = {step.design: step.name for step in reversed(chosen)}
    with progress_of_trainings(trainings, steps) as advance:
        outcomes = ablate(
            size,
            text,
            settings,
            designs,
            rates,
            range(seeds),
            on_step=lambda design, row: advance(row.step, f"{labels[design]}: loss {row.loss:.3f}"),
        )
    inputs = {
        "model": model,
        "designs": through if only is None else None,
        "only": only,
        "view": view if only is None else None,
        "lr": rates,
        "seeds": seeds,
        "data": text.name,
        "settings": settings,
        "set": set or [],
    }
    first = chosen[0].design.spec(size, f"{spec.name}-as-{chosen[0].name}")
    shown = ", ".join(f"{rate:g}" for rate in rates)
    about = (
        f"{about_training(first, text, settings, of_all=False)} · warm-up {settings.warmup} · learning rate {shown} · "
        f"{plural(seeds, 'seed')}"
    )
    if plot is not None:
        from llmbench.report.plots import save

        save(panels(chosen, outcomes, text.unigram), plot, title="What does each part change?", caption=about)
    answer_and_show(
        document(chosen, outcomes, text.unigram, inputs, about, environment(device_of("cpu"))), format, output
    )
