"""The implementations that compute a model. `IMPLEMENTATIONS` describes each of them.

`impl=` names one Implementation for the whole model. A function of an implementation raises CannotRunError for inputs
that it does not support, such as a soft cap in SDPA. It never switches to another implementation. If the user names no
implementation, `preferred` chooses one for the model.

Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from llmbench.errors import CannotRunError, install_hint, unknown
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.model.implementations.interface import Implementation

__all__ = [
    "IMPLEMENTATIONS",
    "PREFERENCE",
    "AboutImplementation",
    "described",
    "implementation",
    "preferred",
    "refuse_unavailable",
    "with_own_attention",
]


class AboutImplementation(NamedTuple):
    """The description of an implementation, for `--help` and the docs.

    - `module`: the module in this folder that defines the implementation. It is imported on first use.
    - `what`: the code that computes the model.
    - `scores`: whether attention stores its scores in memory.
    - `caps`: whether attention supports soft caps and sinks. "yes" means: on every device.
    - `biases`: how attention computes biases (ALiBi, T5).
    - `devices`: the devices on which it runs.
    """

    module: str
    what: str
    scores: str
    caps: str
    biases: str
    devices: str


def _sdpa(kernel: str) -> AboutImplementation:
    """Return the description of scaled_dot_product_attention with one fixed kernel."""
    what = f"torch's scaled_dot_product_attention with its {kernel} kernel only"
    biases, devices = "if the kernel supports it", "devices for which torch has the kernel"
    return AboutImplementation("sdpa", what, scores="no", caps="no", biases=biases, devices=devices)


IMPLEMENTATIONS: dict[str, AboutImplementation] = {
    "standard": AboutImplementation(
        "plain",
        "plain torch with matrix products and a softmax; keeps the scores in memory; computes every model",
        scores="yes, and a softmax in fp32",
        caps="yes",
        biases="yes",
        devices="every device",
    ),
    "sdpa": AboutImplementation(
        "sdpa",
        "torch's scaled_dot_product_attention, which chooses its kernel; no soft cap, no sinks",
        scores="depends on torch's kernel",
        caps="no",
        biases="as a mask",
        devices="every device",
    ),
    "sdpa-flash": _sdpa("flash"),
    "sdpa-cudnn": _sdpa("cuDNN"),
    "sdpa-efficient": _sdpa("memory-efficient"),
    "flex": AboutImplementation(
        "flex",
        "torch's FlexAttention; also supports soft caps and sinks; without torch.compile it is as slow as standard",
        scores="no, if compiled",
        caps="yes",
        biases="yes",
        devices="CPU and GPU",
    ),
    "flash": AboutImplementation(
        "kernels",
        "our Triton kernels for attention, which read caches in place; on a CPU, torch's flash kernel for CPUs",
        scores="no",
        caps="yes on a GPU, no on a CPU",
        biases="only ALiBi's slopes on a GPU, as a mask on a CPU",
        devices="GPU, with our kernels; CPU, with torch's kernel",
    ),
    "fused": AboutImplementation(
        "kernels",
        "our Triton kernels for attention, norms with their residual sum, rotation, gates, experts and the loss; needs "
        "a GPU, or TRITON_INTERPRET=1",
        scores="no",
        caps="yes",
        biases="only ALiBi's slopes",
        devices="GPU, with our kernels",
    ),
}
"""The names that `impl=` accepts."""

PREFERENCE = ("sdpa", "standard")
"""The implementations from which `preferred` chooses. The first one that computes the model is taken. The last one
computes every model."""


def described(name: str) -> Implementation:
    """Return the implementation with this name, even if this machine cannot run it.

    Raises UnknownNameError, which suggests the nearest name.
    """
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    module = import_module(f"{__name__}.{IMPLEMENTATIONS[name].module}")
    implementations: dict[str, Implementation] = module.IMPLEMENTATIONS
    return implementations[name]


def implementation(name: str) -> Implementation:
    """Return the implementation with this name.

    Raises UnknownNameError, which suggests the nearest name, and CannotRunError if this machine cannot run the
    implementation.
    """
    return refuse_unavailable(described(name))


def preferred(spec: ModelSpec) -> tuple[str, str]:
    """Return the first implementation in PREFERENCE that computes the model, and the reason why it is not the first of
    all. The reason is empty if it is the first."""
    layers = [*spec.layers.values(), *(spec.encoder.layers.values() if spec.encoder else ())]
    mixers = [mixer for layer in layers for mixer in (*branches(layer.mixer), layer.cross_attention)]
    changes = {text for mixer in mixers if isinstance(mixer, AttentionKind) for text in mixer.score_changes}
    name = next(name for name in PREFERENCE if not changes or IMPLEMENTATIONS[name].caps == "yes")
    first = PREFERENCE[0]
    return name, "" if name == first else f"{first} does not support {' and '.join(sorted(changes))}"


def refuse_unavailable(implementation: Implementation) -> Implementation:
    """Return `implementation`. Raises CannotRunError if this machine cannot run it."""
    if implementation.unavailable:
        raise CannotRunError(implementation.unavailable, hint=f"{install_hint('gpu')}, or use standard")
    return implementation


def with_own_attention() -> tuple[str, ...]:
    """Return the implementations that compute attention in different ways. An implementation with the attention of an
    earlier one, such as `fused`, is left out."""
    names = {described(name).attend: name for name in reversed(IMPLEMENTATIONS)}
    return tuple(name for name in IMPLEMENTATIONS if name in names.values())
