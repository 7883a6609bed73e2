"""The functions with kernels in a forward pass of a real model, counted on meta tensors by torch's dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.model import build, decoder, seq2seq
from llmbench.model.positions import tables_of
from llmbench.model.scopes import Scopes
from llmbench.model.trace import prepared, run_once
from llmbench.spec.model import ModelSpec

WITHOUT_KERNEL = {"_unsafe_view", "empty", "new_empty", "empty_like", "detach"}
"""Functions that are no views by their signature, but only make or reinterpret tensors. (`promote_types`, which
returns no tensor, is left out by its result.)"""

KERNELS = {"sort_by_expert": 2, "moe": 3}
"""Launches of our own ops that launch several kernels. Source: their Python functions in kernels/experts."""


class Launches(TorchDispatchMode):
    """Counts functions with kernels, by scope."""

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()
        self.scopes = scopes
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        view = all(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        name = func._schema.name.rpartition(":")[2]
        tensors = isinstance(result, (torch.Tensor, tuple, list))
        if tensors and not view and name not in WITHOUT_KERNEL:
            scope = self.scopes.own
            self.counts[scope] = self.counts.get(scope, 0) + KERNELS.get(name, 1)
        return result


class OneKernelNorms(TorchFunctionMode):
    """On CUDA, RMSNorm is one kernel. On meta, torch computes it in steps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].clone() if func is F.rms_norm else func(*args, **(kwargs or {}))


@contextmanager
def own_steps(model: Any, scopes: Scopes, impl: str) -> Iterator[None]:
    """Give the steps of the implementation their scopes, which `prepared` does for `standard` only."""
    usual = model.implementation
    with prepared(model, scopes, "standard"):
        if impl != "standard":

            def attend(*args: Any) -> Any:
                with scopes.within(f"{scopes.innermost}.core"):
                    return usual.attend(*args)

            def glu(*args: Any) -> Any:
                with scopes.within(f"{scopes.innermost}.act"):
                    return usual.glu(*args)

            model.implementation = usual._replace(attend=attend, glu=glu)
        yield


def counted(spec: ModelSpec, names: set[str], impl: str, *, seq_len: int, batch: int) -> dict[str, int]:
    """Return the launches of one forward pass, by scope.

    The scope `outside` has the work that no op describes: the tables of RoPE.
    """
    model = build(spec, impl=impl, device="meta", dtype=torch.bfloat16)
    scopes = Scopes(model, names)
    mode = Launches(scopes)

    def tables(*args: Any) -> Any:
        with scopes.within("outside"):
            return tables_of(*args)

    tokens = torch.zeros((batch, seq_len), dtype=torch.int64, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "tables_of", tables)
        patch.setattr(seq2seq, "tables_of", tables)
        with own_steps(model, scopes, impl), torch.no_grad(), scopes, OneKernelNorms(), mode:
            run_once(model, tokens)
    return mode.counts
