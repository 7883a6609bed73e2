"""`llmbench memory`: the peak memory of one GPU in training or serving, and the devices that have enough memory."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from llmbench.answers.memory import Kernels, Phase, document, sized
from llmbench.cli.options import (
    NO_RECOMPUTE,
    ONE,
    SEQS,
    As,
    CacheType,
    Choices,
    Counts,
    Explain,
    OneModel,
    Output,
    Seqs,
    Set,
    WeightsOption,
    answer,
    choices_of,
    load,
    positive_integer,
    prints_tables,
    reading,
    sequence_counts,
)
from llmbench.sizing.recipe import Optimizer, PrecisionName
from llmbench.sizing.workload import Loss, Recompute

TRAINING = "Training"
SERVING = "Serving"
"""The headings above the options of one phase."""

PhaseOption = Annotated[Phase, typer.Option("--phase", help="train: a training step. inference: serving.")]
MicroBatch = Annotated[
    Counts,
    typer.Option(
        "--batch",
        "--micro-batch",
        metavar="N",
        help="Sequences per data-parallel replica. Training: sequences of one micro-batch. Inference: sequences that "
        "are served at the same time. A sweep: 1,8,64, or 1..64, which doubles up to the last.",
        parser=sequence_counts,
    ),
]
Precision = Annotated[
    PrecisionName | None,
    typer.Option(
        "--precision",
        help="Number formats of weights, gradients and optimizer states. Default: mixed.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
OptimizerOption = Annotated[
    Optimizer,
    typer.Option(
        "--optimizer",
        metavar="NAME",
        help=f"Optimizer. Choices: {', '.join(get_args(Optimizer))}.",
        rich_help_panel=TRAINING,
    ),
]
RecomputeOption = Annotated[
    Choices,
    typer.Option(
        "--recompute",
        rich_help_panel=TRAINING,
        **choices_of(
            Recompute,
            "Activations that the backward pass computes again. selective: attention scores. "
            "every-second: all activations except those of attention and of every second matrix product. full: all "
            "activations of a layer. A sweep: none,full.",
        ),
    ),
]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Parallel layout, for example tp=8,sp,pp=4,dp=2,zero=1. cp=2 divides the tokens, pp=8,interleave=3 gives "
        "each GPU three stages. Experts have a grid of their own, ep=8,etp=1. Uneven stages of 80 layers: "
        "pp=4,first=19,last=19, or with quotes 'pp=4,stages=Et*19|t*21|t*21|t*19L'. Default: one GPU.",
        show_default=False,
    ),
]
KernelsOption = Annotated[
    Kernels,
    typer.Option(
        "--kernels",
        help="Kernels of the training step. fused: fused kernels and flash attention. eager: plain torch and flash "
        "attention. standard: plain torch, and attention that stores its scores.",
        rich_help_panel=TRAINING,
    ),
]
LossOption = Annotated[
    Loss,
    typer.Option(
        "--loss",
        help="Cross-entropy of the training step. plain: as --kernels says. fused: Megatron's fused loss. inplace: the "
        "gradient overwrites the logits. chunked: chunks of tokens. linear: without logits, as in the implementation "
        "fused of other commands.",
        rich_help_panel=TRAINING,
    ),
]
Dropout = Annotated[
    bool,
    typer.Option(
        "--dropout",
        help="Embedding, hidden states and attention have dropout, whose masks are saved.",
        rich_help_panel=TRAINING,
    ),
]
MicroBatches = Annotated[
    int | None,
    typer.Option(
        "--micro-batches",
        metavar="N",
        help="Micro-batches per optimizer step: gradient accumulation. Default: 1, or twice as many as pipeline "
        "stages.",
        parser=positive_integer,
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="ITEMS",
        help="Further settings of the training step: step=foreach|loop|backward (optimizer), states=bf16 or fp8+fp16, "
        "master=remainder, offload=states+weights+activations, recompute=mlp+moe_act, "
        "fp8=cached|primary, imbalance=1.2 (experts), mtp, framework=megatron.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
LoraOption = Annotated[
    str,
    typer.Option(
        "--lora",
        metavar="ITEMS",
        help="Train low-rank adapters on frozen weights: r=16,alpha=32,targets=q,v. Further targets: attention, mlp, "
        "all-linear. Also dropout=0.05 and dora.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="FORMAT",
        help="Format of the frozen weights with --lora (QLoRA): nf4, nf4,double=1, bnb-int8 or another name of `specs "
        "list --formats`. Default: as --precision says.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
CacheFormat = Annotated[
    Choices | None,
    typer.Option(
        "--kv-dtype",
        show_default=False,
        rich_help_panel=SERVING,
        **choices_of(CacheType, "Format of the KV cache. Default: bf16. A sweep: bf16,fp8."),
    ),
]


Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Say whether this device can run the model, for example h100. Can be repeated. The exit code is 1 if no "
        "device that was named fits.",
        show_default=False,
    ),
]
Timeline = Annotated[
    bool,
    typer.Option(
        "--timeline",
        help="Also show the memory along the step: forward pass, backward pass, optimizer.",
        rich_help_panel=TRAINING,
    ),
]


@prints_tables
def command(
    model: OneModel,
    phase: PhaseOption = "train",
    seq: Seqs = SEQS,
    batch: MicroBatch = ONE,
    precision: Precision = None,
    weights: WeightsOption = None,
    optimizer: OptimizerOption = "adamw",
    recompute: RecomputeOption = NO_RECOMPUTE,
    layout: LayoutOption = "",
    kernels: KernelsOption = "fused",
    loss: LossOption = "plain",
    dropout: Dropout = False,
    micro_batches: MicroBatches = None,
    recipe: RecipeOption = "",
    lora: LoraOption = "",
    base: BaseOption = "",
    kv_dtype: CacheFormat = None,
    device: Devices = None,
    explain: Explain = False,
    timeline: Timeline = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compute the peak memory of a GPU in training or serving, and list the devices that have enough memory.

    The command follows a training step op by op through the forward and the backward pass. With pipeline parallelism,
    it shows the stage with the highest peak.

    A device fits if 10% of its memory stays free and its matrix units compute the format. With --device, the exit code
    is 1 if none of the named devices fits. In a sweep, this holds for each row. Without --device, the exit code is 0.

    Examples:

      llmbench memory llama2-7b

      llmbench memory llama2-7b --recompute full --optimizer adamw-8bit

      llmbench memory llama3-8b --lora r=16,alpha=32,targets=q,v --base nf4

      llmbench memory llama3-70b --layout tp=8,sp,pp=4,dp=2,zero=1 --seq 8192

      llmbench memory llama3-70b --phase inference --weights fp8 --batch 32 --layout tp=4

      llmbench memory llama3-8b --phase inference --seq 8k,32k,128k --batch 1,16

      llmbench memory llama2-7b --device h100 --device h200

      llmbench memory llama2-7b --explain --timeline

      llmbench memory llama2-7b --loss chunked --recipe step=backward,offload=activations

      llmbench memory deepseek-v3 --layout pp=16,ep=64,dp=128,zero=1 --recompute full --format json
    """
    with reading(model):
        spec = load(model, set)
        rows = [
            sized(
                spec,
                phase=phase,
                seq=tokens,
                batch=sequences,
                precision=precision,
                weights=weights,
                optimizer=optimizer,
                recompute=again,
                layout=layout,
                kernels=kernels,
                loss=loss,
                dropout=dropout,
                micro_batches=micro_batches,
                recipe=recipe,
                lora=lora,
                base=base,
                kv_dtype=cache,
                devices=device or (),
                explain=explain,
                timeline=timeline,
            )
            for tokens in seq
            for sequences in batch
            for again in recompute
            for cache in kv_dtype or (None,)
        ]
    inputs = {
        "model": model,
        "phase": phase,
        "seq_len": seq.as_input,
        "micro_batch": batch.as_input,
        "precision": precision,
        "weights": weights,
        "optimizer": optimizer,
        "recompute": recompute.as_input,
        "layout": layout,
        "kernels": kernels,
        "loss": loss,
        "dropout": dropout,
        "micro_batches": micro_batches,
        "recipe": recipe,
        "lora": lora,
        "base": base,
        "kv_dtype": kv_dtype.as_input if kv_dtype else None,
        "devices": device or [],
        "set": set or [],
    }
    answer(document(rows, inputs, tables=format != "json"), format, output)
    if device and not all(row.fits_on for row in rows):
        raise typer.Exit(1)
