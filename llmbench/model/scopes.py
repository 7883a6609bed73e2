"""Scopes of a trace. They assign each torch function that runs inside a model to an op of the op table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_OWN_FUNCTIONS: dict[Any, str] = {Tensor.clamp: "clip", F.rms_norm: "v_norm"}
"""Maps a torch function to the name of the op that consists of this function. Such an op has no module."""

_FOLLOWING = {
    "up_proj": "act",
    "transform": "act",
    "core": "gate",
    "g_proj": "gate",
    "shared_gate": "shared_scale",
    "lm_head": "soft_cap",
}
"""Maps the name of a child module to the name of the op that runs after this module. Such an op has no module."""


class Scopes(TorchFunctionMode):
    """A mode that finds the op to which each torch function belongs.

    The current scope is the module whose forward method runs, or an op inside it. A function belongs to the op whose
    parameter it uses. If it uses no parameter, it belongs to the op that consists of this function, or to the op that
    follows the last child module.

    - `outputs`: maps the address of a storage to the name of the op whose output uses the storage.
    """

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        super().__init__()
        self.names = names
        self.stack = [""]
        self.last: dict[str, str] = {}
        self.outputs: dict[int, str] = {}
        # These references keep the storages alive, so that no later tensor gets the address of an output.
        self.output_storages: list[torch.UntypedStorage] = []
        self.owners: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            op = name.removesuffix(".weight").removesuffix(".bias")
            if op in names:
                self.owners[parameter.untyped_storage()._cdata] = op

    @property
    def innermost(self) -> str:
        """The name of the innermost scope."""
        return self.stack[-1]

    def enter(self, name: str) -> None:
        """Make `name` the innermost scope."""
        self.last.pop(name, None)
        self.stack.append(name)

    def leave(self) -> None:
        """End the innermost scope. The scope around it becomes the innermost scope."""
        child = self.stack.pop().rpartition(".")[2]
        self.last[self.innermost] = child

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Run the code in a `with` block in the scope `name`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` in the scope of the op whose parameter is an argument.

        If no argument is a parameter, run `func` in the scope of the op that consists of `func`.
        """
        owner = self._inside(_OWN_FUNCTIONS.get(func, ""))
        for argument in args:
            if isinstance(argument, Tensor):
                owner = self.owners.get(argument.untyped_storage()._cdata, owner)
        if not owner.startswith(f"{self.innermost}."):
            return func(*args, **(kwargs or {}))
        with self.within(owner):
            return func(*args, **(kwargs or {}))

    def output(self, name: str, result: Tensor) -> None:
        """Record `result` as the output of the op `name`, so that the bytes of `result` count for this op.

        Does nothing if the op table has no such op.
        """
        if name in self.names:
            storage = result.untyped_storage()
            self.outputs[storage._cdata] = name
            self.output_storages.append(storage)

    @property
    def own(self) -> str:
        """The name of the op that does the current work of the innermost scope, outside its child modules.

        If an op without a module follows the last child module, this is the name of that op. Otherwise, this is the
        name of the scope.
        """
        return self._inside(_FOLLOWING.get(self.last.get(self.innermost, ""), "")) or self.innermost

    def _inside(self, child: str) -> str:
        """Return the full name of the op `child` in the innermost scope. Empty if the op table has no such op."""
        name = f"{self.innermost}.{child}".lstrip(".")
        return name if name in self.names else ""


class FlopsByScope(TorchDispatchMode):
    """A mode that adds the FLOPs of each function to the current scope, in `flops`.

    Enter this mode after the FLOP counter.
    """

    def __init__(self, counter: FlopCounterMode, scopes: Scopes, flops: dict[str, int]) -> None:
        super().__init__()
        self.counter, self.scopes, self.flops = counter, scopes, flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and add its FLOPs to the current scope."""
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        added = self.counter.get_total_flops() - before
        if added:
            scope = self.scopes.innermost
            self.flops[scope] = self.flops.get(scope, 0) + added
        return out
