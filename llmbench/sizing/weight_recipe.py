"""How the weights of a model are stored: in the format of its files, or in one that the user names."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from llmbench.errors import SpecError, UnsupportedError
from llmbench.sizing.dtypes import DType, Tensors, bits_of
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.stored_tensors import ONE_TOKEN, role_of, sides, stored_tensors
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.files import FileWeights
    from llmbench.spec.weights.formats import Chosen, Role, Storage
    from llmbench.spec.weights.modules import ModuleNames
    from llmbench.spec.weights.patterns import Patterns
    from llmbench.spec.weights.stored import Weights

_TOWER = "vis(ion|ual)|image|video|audio|speech|project(or|ion)|merger|resampler|patch"
"""Matches patterns of modules of the parts for other modalities than text."""

_NO_MATRIX = (
    f"{_TOWER}|mtp|nextn|eh_proj|shared_head|draft|"
    "norm|conv|rotary|e_score|embed|bias|lm_head|output_layer|router|gate$"
)
"""Matches patterns of modules that are not matrices of the text part, and of matrices that only some models have."""


def _chosen(text: str) -> Chosen:
    from llmbench.spec.weights.formats import chosen  # imported here, because most models have no quantised format

    return chosen(text)


class WeightRecipe:
    """The recipe of a format, or of the published files of a model.

    text: a format such as `gptq,bits=8`. None: the format of the published files. Patterns of module names apply only
        to the published files.
    served: whether the weights are in the memory of an engine. Engines convert published weights in fp32 to bf16.
    origin: where the format comes from: `--weights`, `quantization_config`, `the config`, `the spec`, or `assumed`
        if the spec does not say it. `the files`: the headers of the files give the bytes. `the index of the files`:
        only the index exists, and gives the total.
    files: the bytes by op in the files. None: no files were read.

    Raises UnsupportedError if the format of the published files is not known, and SpecError if `text` names a format
    that quantises no matrix of the model.
    """

    def __init__(self, spec: ModelSpec, text: str | None = None, *, served: bool = False) -> None:
        self.spec = spec
        self._asked = text or ""
        own = spec.weights
        self.origin = "--weights" if text else own.source or ("the spec" if own.format or own.dtype else "assumed")
        self.files: FileWeights | None = None
        self.name = ""
        if text is not None and text.endswith(".gguf"):
            from llmbench.spec.weights.stored import Weights  # formats need no such value

            spec = msgspec.structs.replace(spec, weights=Weights(dtype="fp16", tensors_in=text), towers=())
            own, text = spec.weights, None
        if text is None and own.tensors_in:
            self.name = own.tensors_in if own.tensors_in.endswith(".gguf") else ""
            own = self._read_files(spec)
            spec = self.spec
        if text is None and own.unknown:
            raise UnsupportedError(
                f"{spec.name}: the bytes of the weights are not known, because {own.unknown}",
                hint="say the format with --weights, for example --weights fp8",
            )
        self.published = text is None
        self._format = _chosen(text or own.format) if text or own.format else None
        plain = None if self._format is None else self._format.format.plain
        self._converted = served and plain is None and own.dtype == "fp32"
        self._plain: DType = "bf16" if self._converted else plain or own.dtype or "bf16"
        self._fp32 = own.fp32 if self._format is None or plain is None else ()
        self._by_role: dict[Role, Storage | None] = {}
        self._chosen_by_name: dict[tuple[str, int | None], tuple[bool, bool, Storage | None]] = {}
        self._overrides = [(o.modules, _chosen(o.format).storage() if o.format else None) for o in own.overrides]
        self._gguf = None
        if self._format is not None and self._format.format.gguf is not None:
            from llmbench.sizing.gguf import GgufChoices  # loads the tables of all families

            self._gguf = GgufChoices(spec, self._format.format.gguf, self._format)
        self.by_module = self._gguf is not None or self.files is not None
        self.by_module |= self.published and bool(own.keeps or own.overrides)
        if not self.published and self._format is not None and self._format.format.tensors:
            self._refuse_unused(self._format)

    def _refuse_unused(self, form: Chosen) -> None:
        """Raise SpecError if a format of `--weights` or `--base` would quantise no matrix of the model."""
        ops = lower(self.spec, ONE_TOKEN)
        if any(self.storage(op, None) for op in ops):
            return
        said = f"weight format `{form.text}` quantises no matrix of {self.spec.name}"
        if any(self._usual(op) for op in ops):
            raise SpecError(f"{said}: its groups divide the inputs of no matrix", hint="choose a smaller group")
        roles = ", ".join(form.format.roles).replace("_", " ")
        raise SpecError(
            f"{said}: it is for {roles}",
            hint="for example mxfp4-linear, or another format of `llmbench specs list --formats`",
        )

    def _read_files(self, spec: ModelSpec) -> Weights:
        """Read the headers of the files, and return the format of the spec without what the files decide."""
        from llmbench.sizing.files import FileWeights  # most models have no files
        from llmbench.spec.weights.tensors import read_tensors

        found = read_tensors(spec.weights.tensors_in)
        own = msgspec.structs.replace(spec.weights, tensors_in="")
        if own.unknown:
            own = type(own)(dtype=own.dtype)
        if own.dtype is None:
            own = msgspec.structs.replace(own, dtype=found.plain_dtype)
        self.spec = msgspec.structs.replace(spec, weights=own)
        self.files = FileWeights(spec, found, WeightRecipe(self.spec))
        self.origin = "the files" if found.tensors is not None else "the index of the files"
        return own

    @property
    def notes(self) -> list[str]:
        """A note if `text` is an alias that can mean other formats too."""
        from llmbench.spec.weights.formats import alias_note

        return [note] if (note := alias_note(self._asked)) else []

    def tensors(self, op: Op, layer: int | None, *, loaded: bool = False) -> list[Tensors]:
        """Return the tensors of one instance of an op (see `stored_tensors`)."""
        found = None if self.files is None else self.files.tensors(op, layer)
        if found is not None:
            return found
        return stored_tensors(op, self.storage(op, layer), self.plain_bits(op), loaded=loaded)

    @cached_property
    def title(self) -> str:
        """A description of the format: `fp8, one scale per block of 128 × 128`.

        If headers of files were read, it names the formats of their tensors. It names the format of the config only if
        the tensors of all ops have the bytes of this format.
        """
        if self.name and self.files is not None:
            return f"GGUF, {self.files.types}"
        if self.files is not None and self.files.types and (self.files.differ or not self.quantises):
            return f"{self._plain}, converted from {self.files.types}" if self._converted else self.files.types
        formats: list[Chosen] = [] if self._format is None else [self._format]
        if self.published:
            formats += [_chosen(o.format) for o in self.spec.weights.overrides if o.format]
        return " and ".join(dict.fromkeys(each.title for each in formats)) or (
            f"{self._plain}, converted from fp32" if self._converted else self._plain
        )

    @property
    def text(self) -> str:
        """The format as `--weights` accepts it: `gptq,bits=8`. In files, it is the format of most bytes."""
        if self._format is None and self.files is not None and not self._converted:
            return self.name or self.files.found.plain_dtype or self._plain
        return self.name or (self._plain if self._format is None else self._format.text)

    @property
    def format_name(self) -> str:
        """The name of the format without its parameters: `gptq`, or `gguf` for a GGUF file."""
        return "gguf" if self.name else self.text.partition(",")[0]

    @property
    def quantises(self) -> bool:
        """Whether at least one matrix can have other bits than the rest of the weights."""
        form = None if self._format is None else self._format.format
        if self.files is not None and self.files.differ:
            return True
        return bool(self._overrides) or (form is not None and (bool(form.tensors) or form.gguf is not None))

    @property
    def products(self) -> DType:
        """The number format in which the matrix products run."""
        return self._plain if self._format is None else self._format.format.products

    def towers(self, tp: int = 1) -> list[Tensors]:
        """Return the weights of the parts for other modalities than text on one GPU. No format quantises them.

        Engines split them over the tensor-parallel group. llama.cpp has them in a file of their own, which is not
        counted.
        """
        if self.files is not None:
            return self.files.loaded_others(tp)
        if self._gguf is not None:
            return []
        counted = [(tower.name, tower.parameters) for tower in self.spec.towers if tower.parameters is not None]
        return [Tensors(name, -(-parameters // tp), bits_of(self._plain)) for name, parameters in counted]

    @property
    def encoder_layers(self) -> int:
        """The number of layers of a separate encoder. They come before the layers of the decoder."""
        return 0 if self.spec.encoder is None else len(self.spec.encoder.order)

    @property
    def without_next_token_prediction(self) -> bool:
        """Whether files of this format leave out the multi-token-prediction modules."""
        return self._format is not None and self._format.format.without_next_token_prediction

    def storage(self, op: Op, layer: int | None) -> Storage | None:
        """Return how the matrices of an op are stored in one layer. None: they are not quantised."""
        if self._gguf is not None:
            return None if op.matrix is None else self._gguf.storage(op, layer)
        found = self._stored(op, layer) if self.by_module else self._usual(op)
        if found is None or op.matrix is None or (found.divides and sides(op)[0] % found.divides):
            return None
        return found

    def _usual(self, op: Op) -> Storage | None:
        """Return how the matrices of an op are stored if no pattern matches."""
        role = role_of(op)
        if role is None or self._format is None:
            return None
        if role not in self._by_role:
            self._by_role[role] = self._format.storage(role, self.spec.family)
        return self._by_role[role]

    def _stored(self, op: Op, layer: int | None) -> Storage | None:
        key = (op.name, layer)
        if key not in self._chosen_by_name:
            self._chosen_by_name[key] = self._by_patterns(self._modules.names_of(op.name, layer))
        kept, found, storage = self._chosen_by_name[key]
        return None if kept else storage if found else self._usual(op)

    def _by_patterns(self, names: list[str]) -> tuple[bool, bool, Storage | None]:
        """Return whether the patterns keep a module as it is, whether an override matches, and its storage."""
        keeps, overrides = self._patterns
        kept = keeps.match(names)
        for patterns, (_, storage) in zip(overrides, self._overrides, strict=True):
            if patterns.match(names):
                return kept, True, storage
        return kept, False, None

    @cached_property
    def _modules(self) -> ModuleNames:
        from llmbench.spec.weights.modules import ModuleNames  # loads the tables of all families

        return ModuleNames(self.spec)

    @cached_property
    def _patterns(self) -> tuple[Patterns, list[Patterns]]:
        from llmbench.spec.weights.patterns import pattern_lists

        keeps, *overrides = pattern_lists([self.spec.weights.keeps, *(modules for modules, _ in self._overrides)])
        return keeps, overrides

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why the bytes may be inexact, after the bytes of all ops were computed."""
        if self.files is not None:
            return tuple(self.files.doubts)
        return (*self._text_doubts, *self._tower_doubts)

    @property
    def _text_doubts(self) -> tuple[str, ...]:
        if not self.published:
            return ()
        lost: list[str] = []
        if self.by_module:
            keeps, overrides = self._patterns
            for patterns in (keeps, *overrides):
                lost += [pattern for pattern in patterns.unmatched if not self._has_no_matrix(pattern)]
        if not lost:
            return self.spec.weights.doubts
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        source = self.spec.weights.source or "the spec"
        said = f"no module of the model has the name {', '.join(lost[:3])}{more}, which {source} gives"
        return (*self.spec.weights.doubts, said)

    @property
    def _tower_doubts(self) -> tuple[str, ...]:
        """The reasons of the parts for other modalities. llama.cpp has these parts in a file of their own."""
        if self._gguf is not None or not self.spec.towers:
            return ()
        doubts = [f"{tower.name}: {doubt}" for tower in self.spec.towers for doubt in tower.doubts]
        quantises = self._format is not None and bool(self._format.format.tensors)
        if self.published and quantises and not any(re.search(_TOWER, name) for name in self.spec.weights.keeps):
            doubts.append(
                f"{self.spec.towers[0].name}: the source of the format does not say whether it is quantised; "
                f"{bits_of(self._plain)} bits per element are assumed"
            )
        return tuple(doubts)

    def _has_no_matrix(self, pattern: str) -> bool:
        """Return whether a pattern names modules that the op table does not have, or that no format quantises."""
        layer = re.search(r"layers\.(\d+)", pattern.replace("\\", ""))
        beyond = layer is not None and int(layer[1]) >= self.spec.num_hidden_layers
        return beyond or re.search(_NO_MATRIX, pattern) is not None

    def plain_bits(self, op: Op) -> int:
        """Return the bits per element of the weights of an op that are not quantised.

        The files of every checkpoint with a score correction store it in fp32 (DeepSeek-V3, GLM-4.5, MiniMax-M2).
        """
        name = op.name.partition("{}.")[2] or op.name
        if op.buffers and name.endswith("router.correction"):
            return 32
        return 32 if name in self._fp32 else bits_of(self._plain)
