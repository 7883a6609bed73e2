"""`Weights`, the part of a ModelSpec that says how the files of a checkpoint store the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from llmbench.errors import SpecError
from llmbench.spec.base import Fault, Part

MOST_OVERRIDES = 2_000
"""The largest number of entries of `overrides`. Each of them can name any number of modules."""


class ModuleFormat(Part, frozen=True):
    """Modules that are stored in another format than the rest.

    - modules: patterns of module names (see `Weights.keeps`).
    - format: format of these modules, as in `Weights.format`.
    """

    modules: tuple[str, ...]
    format: str


class Weights(Part, frozen=True):
    """How the published files of a model store its weights.

    - format: name of a format, with the parameters that differ from its defaults: `fp8-block`, `gptq,bits=8,group=32`.
      Empty: no matrix is quantised.
    - dtype: number format of all tensors that `format` does not quantise. None: the source does not say it, and 2 bytes
      per element are assumed.
    - keeps: patterns of the names of modules that are not quantised. The names are those of the files. A pattern is one
      or several whole parts of a name (`lm_head`, `mlp.gate`), where `*` stands for any characters. A pattern that
      begins with `re:` is a regular expression, which must match from the beginning of the name.
    - overrides: modules with another format. The first entry that matches applies. `keeps` comes before them.
    - fp32: the weights that are stored in fp32, by their name in llmbench inside a layer: `delta_net.A_log`.
    - source: where these fields come from, if it is not the spec file itself: `quantization_config`.
    - doubts: why the number of bytes may be inexact.
    - unknown: why the format is not known. The number of bytes is then not known either.
    - tensors_in: folder of the files of a checkpoint, or `hf:organisation/name@revision`. The headers of the files give
      the exact bytes. llmbench sets it when it reads a checkpoint. A spec file and `--set` cannot set it.
    """

    format: str = ""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    keeps: tuple[str, ...] = ()
    overrides: tuple[ModuleFormat, ...] = ()
    fp32: tuple[str, ...] = ()
    source: str = ""
    doubts: tuple[str, ...] = ()
    unknown: str = ""
    tensors_in: str = ""

    @property
    def known(self) -> bool:
        """Whether the number of bytes can be computed."""
        return not self.unknown or bool(self.tensors_in)

    def faults(self) -> Iterator[Fault]:
        if not (self.format or self.keeps or self.overrides):
            return  # most models need no tables of formats

        if len(self.overrides) > MOST_OVERRIDES:
            yield Fault("overrides", f"has {len(self.overrides):,} entries, more than {MOST_OVERRIDES:,}")
            return

        from llmbench.errors import LLMBenchError
        from llmbench.spec.weights.formats import chosen
        from llmbench.spec.weights.patterns import faulty_patterns

        texts = [("format", self.format), *((f"overrides.{i}.format", o.format) for i, o in enumerate(self.overrides))]
        for field, text in texts:
            if text:
                try:
                    chosen(text)
                except LLMBenchError as problem:
                    yield Fault(field, str(problem), problem.hint)
        named = [("keeps", self.keeps), *((f"overrides.{i}.modules", o.modules) for i, o in enumerate(self.overrides))]
        wrong = faulty_patterns(pattern for _, patterns in named for pattern in patterns)
        if wrong is not None:
            yield Fault(next((at for at, patterns in named if faulty_patterns(patterns) == wrong), "keeps"), wrong)

    def refuse_place(self) -> None:
        """Raise SpecError if a text from outside sets the place of the files: no spec decides which files are read."""
        if self.tensors_in:
            raise SpecError(
                "weights.tensors_in: only llmbench itself sets this field, when it reads a checkpoint",
                hint="name the folder, the .gguf file or `hf:organisation/name` as the model, instead of a spec",
            )
