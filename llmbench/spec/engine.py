"""Profiles of inference engines: the constants with which an engine divides the memory of a GPU.

A file `specs/engines/<name>.toml` has a table per version. A version has the constants of the older versions, except
those that it states itself. Every constant has the form `{ value = ..., source = "NAME" }`, and the table `[sources]`
describes each source NAME.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from llmbench.errors import SpecError, UnknownNameError, suggestion, unknown
from llmbench.spec.base import Part
from llmbench.spec.reading import read_text

if TYPE_CHECKING:
    from llmbench.spec.catalog import DeviceHead

ENGINES = Path(__file__).parent.parent / "specs" / "engines"
"""The folder that contains the bundled profiles."""

Rule = Literal["ideal", "llamacpp", "sglang", "trtllm", "vllm"]
"""How an engine divides the memory. `llmbench/sizing/serving/budget.py` has a function for each rule."""

Remainder = Literal["first", "last", "before last", "one", "head"]
"""Which pipeline stages get the layers that remain after an even division.

first: the first stages get one layer more. last: the last stages. before last: the stages from the second-last one
backwards. one: the last stage gets all of them. head: the layers and the head are divided evenly by their position.
`llmbench/sizing/serving/pipeline.py` has the rules.
"""

CONSTANTS = {
    "utilization": "share of the memory that the engine may use (see the title of the engine)",
    "context": "bytes of the CUDA context, with one GPU",
    "context_tp": "bytes of the CUDA context and of the communication library, with several GPUs",
    "outside_torch": "bytes that the engine allocates outside PyTorch while it measures its memory, with one GPU",
    "outside_torch_tp": "the same with several GPUs",
    "outside_torch_sm90": "the same on a Hopper GPU, with one GPU",
    "graphs": "bytes of CUDA graphs that the engine counts in its budget",
    "activations": "bytes of activations; replaces the computed figure",
    "margin": "bytes that stay free",
    "batched_tokens": "largest number of tokens in one step",
    "sequences": "largest number of sequences in one step",
    "graph_sequences": "largest number of sequences of a CUDA graph, with less than four GPUs",
    "graph_sequences_tp4": "the same with at least four GPUs",
    "experts_chunk": "tokens that experts compute at once, except with Marlin's kernels. 0: all tokens",
    "chunked_prefill": "1: a long prompt is divided over several steps. 0: a step has room for a whole sequence",
    "sorts_logits": "1: the sampler sorts the logits. 0: a kernel selects them without sorting",
    "all_logits": "1: the compute buffer has the logits of every token of a step. 0: it has only few of them",
    "block_tokens": "tokens per block of the cache",
    "latent_block_tokens": "the same for latent attention",
    "groups_layers": "1: the cache has groups of layers with equal rules. 0: every layer keeps all tokens",
    "group_percent": "largest ratio of two classes of layers, in percent, at which they form groups of the larger size",
    "windows_percent": "tokens of the pool of layers with a window, in percent of the tokens of the other pool",
    "states_percent": "bytes of the pool of recurrent states, in percent of the bytes of the other pool",
    "states_per_request": "states that one request needs",
    "state_bytes": "bytes per element of a recurrent state. 0: those of an activation",
    "conv_state_bytes": "bytes per element of the state of a short convolution. 0: those of an activation",
    "config_states": "1: if the config of the model states the format of recurrent states, this format is used",
    "vocabulary_multiple": "the rows of embedding and head are padded to a multiple of this number",
    "mxfp4_multiple": "the inputs of MXFP4 experts are padded to a multiple of this number",
    "host_embedding": "1: the embedding table stays in the memory of the CPU",
    "draft_tokens": "tokens that a draft model proposes in one step",
    "draft_vocabulary": "largest difference between the vocabulary sizes of a model and of its draft model",
    "mtp": "number of modules for multi-token prediction that the engine loads, with their cache",
    "rope_table": "1: every GPU stores the sines and cosines of all positions",
}
"""The constants that a profile can have. The user can replace each of them: `--engine vllm,sequences=64`."""


SET = "set on the command line"
"""The source of a constant that the user replaced."""


AT_LEAST_ONE = (
    "batched_tokens",
    "sequences",
    "block_tokens",
    "latent_block_tokens",
    "vocabulary_multiple",
    "states_per_request",
    "states_percent",
    "windows_percent",
)
"""The constants that cannot be 0."""


BYTES = (
    "context",
    "context_tp",
    "outside_torch",
    "outside_torch_tp",
    "outside_torch_sm90",
    "graphs",
    "activations",
    "margin",
)
"""The constants that are sizes of memory: `outside_torch=1.5GiB`."""


class Step(Part, frozen=True, kw_only=True):
    """The value of a constant on devices with at least `memory` bytes, except those of one compute capability."""

    memory: int
    value: int | float
    not_capability: str = ""


class Doubt(Part, frozen=True, kw_only=True):
    """Why the value of a constant may be inexact.

    experts: whether this holds only for mixtures of experts. weights: only for weights in this format. "": all.
    not_capability: the doubt does not hold on devices of this compute capability.
    """

    text: str
    experts: bool = False
    weights: str = ""
    not_capability: str = ""


class Constant(Part, frozen=True, kw_only=True):
    """A number and the name of its source.

    steps: values on devices with more memory, the smallest memory first. doubt: why the value may be inexact.
    """

    value: int | float
    source: str
    steps: tuple[Step, ...] = ()
    doubt: Doubt | None = None


class WeightOnly(Part, frozen=True, kw_only=True):
    """Formats of weights that an engine multiplies on devices whose matrix units do not compute them.

    A kernel converts the weights to the format of the activations while it multiplies them.

    formats: names of formats. `fp8-*` stands for all names that begin with fp8-. capability: the smallest CUDA compute
    capability. experts: whether the engine has such a kernel for experts too.
    """

    formats: tuple[str, ...]
    capability: str
    experts: bool
    source: str


class WholeBlocks(Part, frozen=True, kw_only=True):
    """Formats of weights whose blocks of inputs an engine does not split among GPUs.

    A matrix whose inputs are split must give every GPU whole blocks: those of `fp8-block`, or the groups of AWQ.

    formats: names of formats, as in `WeightOnly`. experts: whether the rule is for the matrices of experts, or for all
    other matrices. halved_to: the engine halves the groups until they are whole, down to this number of inputs. 0: it
    does not.
    """

    formats: tuple[str, ...]
    experts: bool
    source: str
    halved_to: int = 0


class OnLoad(Part, frozen=True, kw_only=True):
    """A format to which an engine converts plain weights (bf16, fp16 or fp32) when it loads them.

    format: name of the format. flag: the flag that asks for it. whole: whether all plain weights of a GPU must fit into
    its memory before they are converted.
    """

    format: str
    flag: str
    whole: bool
    source: str


class Stages(Part, frozen=True, kw_only=True):
    """How an engine divides the layers over pipeline stages, and the name of the source."""

    remainder: Remainder
    source: str


class Division(Part, frozen=True, kw_only=True):
    """How an engine divides a model over GPUs: tp, pp, dp and ep. source: name of the source."""

    by: tuple[Literal["tp", "pp", "dp", "ep"], ...]
    source: str


class Downcast(Part, frozen=True, kw_only=True):
    """The formats to which an engine converts published weights in fp32: the first one that the device computes."""

    to: tuple[Literal["bf16", "fp16"], ...]
    source: str


class Version(Part, frozen=True, kw_only=True):
    """What one version of an engine changed: constants, its layouts and stages, conversions, and kernels.

    on_load: formats to which the engine converts plain weights. They replace those of older versions.
    """

    version: str
    layouts: Division | None = None
    stages: Stages | None = None
    downcast: Downcast | None = None
    weight_only: tuple[WeightOnly, ...] = ()
    on_load: tuple[OnLoad, ...] = ()
    constants: dict[str, Constant] = msgspec.field(default_factory=dict)


class EngineSpec(Part, frozen=True, kw_only=True):
    """The profile of an engine.

    - title: name of the engine for people.
    - budget: the rule by which the engine divides the memory, in a sentence.
    - vendors: vendors of the devices whose memory the profile describes. Empty: all.
    - kv_formats: formats of the cache that the engine can store. Empty: all.
    - indexed: the format in which the engine stores the latents of a model with an indexer, by the format of the cache
      that the user names.
    - weight_formats: formats of the weights that the engine loads. `gguf*` stands for all names that begin with gguf.
      Empty: all.
    - layouts: how the engine divides a model over GPUs, if no version says it. whole_experts: whether `ep` always
      splits the experts over all GPUs of a pipeline stage. one_gpu_copies: whether a copy of the attention is always on
      one GPU, so that dp needs tp=1.
    - most_gpus: largest number of GPUs among which the engine divides a model. 0: it has no limit.
    - whole_blocks: formats whose blocks the engine does not split among GPUs.
    - versions: the known versions, the oldest one first.
    - weights: format of the weights that the engine loads if the user names none. None: the published files.
    - converted: the same for published files in some formats, by the name of the format.
    """

    name: str
    title: str
    rule: Rule
    budget: str
    aliases: tuple[str, ...] = ()
    weights: str | None = None
    converted: dict[str, str] = msgspec.field(default_factory=dict)
    vendors: tuple[str, ...] = ()
    kv_formats: tuple[str, ...] = ()
    indexed: dict[str, str] = msgspec.field(default_factory=dict)
    weight_formats: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ("tp", "pp", "dp", "ep")
    whole_experts: bool = False
    one_gpu_copies: bool = False
    most_gpus: int = 0
    whole_blocks: tuple[WholeBlocks, ...] = ()
    versions: tuple[Version, ...]
    sources: dict[str, str]

    def __post_init__(self) -> None:
        for version in self.versions:
            for key, constant in version.constants.items():
                if key not in CONSTANTS:
                    raise ValueError(f"version {version.version}: unknown constant `{key}`")
                self._check_source(key, constant.source)
            if version.layouts is not None:
                self._check_source("layouts", version.layouts.source)
            if version.stages is not None:
                self._check_source("stages", version.stages.source)
            if version.downcast is not None:
                self._check_source("downcast", version.downcast.source)
            for kernel in version.weight_only:
                self._check_source("weight_only", kernel.source)
            for made in version.on_load:
                self._check_source("on_load", made.source)
        for rule in self.whole_blocks:
            self._check_source("whole_blocks", rule.source)

    def default_weights(self, published: str) -> str | None:
        """Return the format of the weights that the engine loads if the user names none. None: the published files.

        published: name of the format of the published files, or "" if they are not quantised.
        """
        return self.converted.get(published, self.weights)

    def _check_source(self, key: str, source: str) -> None:
        if source not in self.sources:
            raise ValueError(f"`{key}` names the source `{source}`, which is not in [sources]")


class Engine(NamedTuple):
    """A version of an engine, and the constants that the user replaced.

    version: the version whose constants are used. "": the engine has no versions.
    asked: the version that the user named, or "".
    layouts: how it divides a model over GPUs: tp, pp, dp and ep.
    constants: the constants. replaced: names of the constants that the user set.
    remainder: how the engine divides the layers over pipeline stages.
    kernels: kernels for weights that a device does not compute.
    downcast: formats to which the engine converts published weights in fp32. Empty: it does not convert them.
    on_load: formats to which the engine converts plain weights if a flag asks for it.
    """

    spec: EngineSpec
    version: str
    asked: str
    constants: dict[str, Constant]
    replaced: tuple[str, ...]
    remainder: Remainder
    kernels: tuple[WeightOnly, ...]
    downcast: tuple[Literal["bf16", "fp16"], ...]
    on_load: tuple[OnLoad, ...]
    layouts: tuple[str, ...]

    def fp32_becomes(self, device: DeviceHead) -> Literal["bf16", "fp16"] | None:
        """Return the format to which the engine converts published weights in fp32. None: it does not convert them."""
        known = [name for name in self.downcast if name in device.matrix_formats] or self.downcast[:1]
        return known[0] if known else None

    def get(self, key: str, default: float = 0, *, device: DeviceHead | None = None) -> float:
        """Return the value of a constant on a device, or `default` if the profile has no such constant.

        device: None stands for a device with little memory.
        """
        constant = self.constants.get(key)
        if constant is None:
            return default
        value = constant.value
        if device is not None:
            for step in constant.steps:
                if device.total_bytes >= step.memory and device.compute_capability != step.not_capability:
                    value = step.value
        return value

    def whole(self, key: str, default: int = 0, *, device: DeviceHead | None = None) -> int:
        """Return the value of a constant on a device as a whole number."""
        return int(self.get(key, default, device=device))

    def doubts(self, device: DeviceHead, *, experts: bool, weights: str) -> list[str]:
        """Return why constants may be inexact for a model on a device.

        experts: whether the model is a mixture of experts. weights: name of the format of its weights.
        """
        doubts = [constant.doubt for constant in self.constants.values() if constant.doubt is not None]
        return [
            doubt.text
            for doubt in doubts
            if (experts or not doubt.experts)
            and doubt.weights in ("", weights)
            and (not doubt.not_capability or device.compute_capability != doubt.not_capability)
        ]

    def converts(self, weights: str, device: DeviceHead, *, experts: bool) -> bool:
        """Return whether a kernel multiplies weights in a format that the matrix units of a device do not compute.

        weights: name of the format. experts: whether the model is a mixture of experts.
        """
        capability = float(device.compute_capability or 0)
        return any(
            any(fnmatchcase(weights, pattern) for pattern in kernel.formats)
            and capability >= float(kernel.capability)
            and (kernel.experts or not experts)
            for kernel in self.kernels
        )

    def source(self, key: str) -> str:
        """Return the description of the source of a constant."""
        name = self.constants[key].source
        return self.spec.sources.get(name, name)

    @property
    def title(self) -> str:
        """The engine and its version: `vLLM 0.19`."""
        return f"{self.spec.title} {self.version}".strip()

    @property
    def text(self) -> str:
        """The engine as `--engine` reads it: `vllm@0.19,sequences=64`."""
        at = f"@{self.asked or self.version}" if self.version else ""
        return ",".join([f"{self.spec.name}{at}", *(f"{key}={self.constants[key].value}" for key in self.replaced)])

    @property
    def notes(self) -> list[str]:
        """A note if the constants are those of an older version."""
        if not self.asked or _numbers(self.asked) == _numbers(self.version):
            return []
        return [
            f"llmbench has no constants that {self.spec.title} {self.asked} changed; it uses those of {self.version}, "
            "the nearest older version"
        ]


@lru_cache(maxsize=1)
def engine_names() -> tuple[str, ...]:
    """Return the sorted names of the bundled engines."""
    return tuple(sorted(file.stem for file in ENGINES.glob("*.toml")))


@lru_cache(maxsize=16)
def load_engine(name: str) -> EngineSpec:
    """Return the bundled engine with exactly this name."""
    return msgspec.toml.decode(read_text(ENGINES / f"{name}.toml"), type=EngineSpec)


def find_engine(text: str) -> Engine:
    """Return the engine that a text names: `vllm`, `vllm@0.11`, or `vllm@0.11,sequences=64,outside_torch=1.5GiB`.

    Without a version, it is the newest one. A version that the profile does not list has the constants of the nearest
    older version.

    Raises UnknownNameError for an unknown engine or constant, and SpecError for a wrong number or a version that is
    older than all known ones.
    """
    head, *changes = (part.strip() for part in text.split(","))
    name, at, asked = (part.strip() for part in head.partition("@"))
    spec = load_engine(_named(name))
    if at and not spec.versions[0].version:
        raise SpecError(f"the engine `{spec.name}` has no versions", hint=f"--engine {spec.name}")
    if at and not re.fullmatch(r"v?\d+(\.\d+)*\w*", asked, re.ASCII):
        raise SpecError(
            f"engine `{spec.name}`: {asked[:40]!r} is not a version",
            hint=f"for example {spec.name}@{spec.versions[-1].version}",
        )
    asked = asked.removeprefix("v")
    constants: dict[str, Constant] = {}
    remainder: Remainder = "first"
    kernels: tuple[WeightOnly, ...] = ()
    downcast: tuple[Literal["bf16", "fp16"], ...] = ()
    on_load: tuple[OnLoad, ...] = ()
    layouts = spec.layouts
    version = None
    for known in spec.versions:
        if asked and _numbers(known.version) > _numbers(asked):
            break
        version = known.version
        constants |= known.constants
        remainder = remainder if known.stages is None else known.stages.remainder
        kernels += known.weight_only
        downcast = downcast if known.downcast is None else known.downcast.to
        on_load = known.on_load or on_load
        layouts = layouts if known.layouts is None else known.layouts.by
    if version is None:
        raise SpecError(
            f"llmbench has no profile of {spec.title} {asked}; the oldest one is {spec.versions[0].version}",
            hint=f"--engine {spec.name}@{spec.versions[0].version}",
        )
    replaced = []
    for change in changes:
        key, _, value = (part.strip() for part in change.partition("="))
        if key not in CONSTANTS:
            raise unknown("constant of an engine", key, CONSTANTS)
        if key in replaced:
            raise SpecError(f"engine constant `{key}` is given twice", hint=f"--engine {spec.name},{key}={value[:40]}")
        number = _number(key, value)
        if key in AT_LEAST_ONE and number < 1:
            raise SpecError(f"engine constant `{key}`: must be at least 1, not {value}")
        constants[key] = Constant(value=number, source=SET)
        replaced.append(key)
    return Engine(spec, version, asked, constants, tuple(replaced), remainder, kernels, downcast, on_load, layouts)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, so that 0.9 is older than 0.11, and 0.19 equal to 0.19.0."""
    numbers = [int(part) for part in re.findall(r"\d{1,9}", version)]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


_UNITS = {"": 1, "k": 2**10, "kib": 2**10, "mib": 2**20, "m": 2**20, "g": 2**30, "gib": 2**30, "gb": 10**9, "mb": 10**6}


def _number(key: str, text: str) -> int | float:
    """Return the value of a constant. All constants but the utilization are whole numbers, of bytes or of something
    else. `1.3GiB` is rounded down to a whole number of bytes."""
    example = f"{key}=1.5GiB" if key in BYTES else "utilization=0.9" if key == "utilization" else f"{key}=64"
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-zA-Z]*)", text, re.ASCII)
    if match is None or match[2].lower() not in _UNITS:
        raise SpecError(f"engine constant `{key}`: {text[:40]!r} is not a number", hint=f"for example {example}")
    value = float(match[1]) * _UNITS[match[2].lower()]
    if key == "utilization":
        return value
    if value != int(value) and not (key in BYTES and match[2]):
        raise SpecError(
            f"engine constant `{key}`: {text[:40]!r} is not a whole number{' of bytes' if key in BYTES else ''}",
            hint=f"for example {example}",
        )
    return int(value)


def _named(text: str) -> str:
    wanted = text.lower().replace("-", "").replace("_", "").replace(".", "").replace(" ", "")
    names = engine_names()
    for name in names:
        if wanted == name or wanted in load_engine(name).aliases:
            return name
    near = suggestion(wanted, names)
    raise UnknownNameError(
        f"engine `{text[:40]}` is unknown",
        hint=(f"did you mean `{near}`? " if near else "") + f"llmbench knows {', '.join(names)}",
    )
