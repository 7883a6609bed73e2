"""The transformer and optimizer that ``training_memory`` traces: plain PyTorch, CUDA's kernels as opaque ops.

Shapes: B batch, S sequence, D hidden, N query heads, K KV heads, H head dim, F intermediate, V vocabulary.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils.checkpoint import checkpoint

from .training_adapters import Lora, add_adapters

Style = Literal["llama", "gpt2"]
Attention = Literal["flash", "standard"]
Recompute = Literal["none", "full"]
Precision = Literal["fp32", "bf16-mixed", "bf16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """The shape of a decoder-only transformer."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool = False
    positions: int = 0  # rows of the learned position table (GPT-2); 0 = the traced sequence length
    choices: int = 0  # experts that the router scores; 0 = a dense MLP
    chosen: int = 0  # experts that each token uses
    experts: int = 0  # experts on this GPU, each ``intermediate`` wide
    gathered: int = 1  # GPUs whose tokens this GPU's experts compute together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """How one training step is run.

    bf16-mixed: bf16 parameters, gradients of ``gradients`` dtype, fp32 master weights and fp32 Adam moments.
    bf16: everything, moments included, in bf16. fp32: everything in fp32.
    persistent_gradients: the gradient buffer outlives the step (Megatron's main_grad) instead of being freed.
    keep_logits: the logits stay allocated in the backward pass (``out = model(...); out.loss.backward()``).
    loss: chunked computes the head and the loss as torchtune does: the head for 8 chunks of tokens, then the loss of
        one chunk after another.
    step: fused is one kernel without temporaries. foreach and loop run torch's own AdamW. backward updates each weight
        as soon as its gradient is there, and frees the gradient.
    lora: adapters, which are then the only trained weights.
    """

    style: Style = "llama"
    precision: Precision = "bf16-mixed"
    gradients: Literal["bf16", "fp32"] = "bf16"
    attention: Attention = "flash"
    softmax_fp32: bool = True
    recompute: Recompute = "none"
    persistent_gradients: bool = False
    keep_logits: bool = False
    loss: Literal["plain", "chunked"] = "plain"
    step: Literal["fused", "foreach", "loop", "backward"] = "fused"
    lora: Lora | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters and activations."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


# ---- Kernels of CUDA as opaque ops that allocate and save what those do ----


@torch.library.custom_op("llmbench_oracle::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (x.float() * rstd * weight.float()).to(x.dtype), rstd


@torch.library.custom_op("llmbench_oracle::rms_norm_backward", mutates_args=())
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    x_hat = x.float() * rstd
    dx_hat = dy.float() * weight.float()
    dx = (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdim=True)) * rstd
    dw = (dy.float() * x_hat).flatten(0, -2).sum(0)
    return dx.to(x.dtype), dw.to(weight.dtype)


def _repeat(x: Tensor, times: int) -> Tensor:
    """(B, K, S, H) -> (B, K*times, S, H)."""
    return x.repeat_interleave(times, 1) if times > 1 else x


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Causal scores in fp32, K at the query's head count."""
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return (q.float() @ k.float().mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)


@torch.library.custom_op("llmbench_oracle::flash", mutates_args=())
def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    times = q.shape[1] // k.shape[1]
    scores = _scores(q, _repeat(k, times))
    out = scores.softmax(-1) @ _repeat(v, times).float()
    return out.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2), scores.logsumexp(-1)


@torch.library.custom_op("llmbench_oracle::flash_backward", mutates_args=())
def _flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    times, (b, kv_heads, s, h) = q.shape[1] // k.shape[1], k.shape
    kk, vv = _repeat(k, times).float(), _repeat(v, times).float()
    probs = torch.exp(_scores(q, kk) - lse[..., None])
    dprobs = dout.float() @ vv.mT - (dout.float() * out.float()).sum(-1, keepdim=True)
    dscores = probs * dprobs / math.sqrt(h)
    dk = (dscores.mT @ q.float()).view(b, kv_heads, times, s, h).sum(2)
    dv = (probs.mT @ dout.float()).view(b, kv_heads, times, s, h).sum(2)
    return (dscores @ kk).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


@torch.library.custom_op("llmbench_oracle::adamw_", mutates_args=("param", "master", "m", "v"))
def _adamw(param: Tensor, grad: Tensor, master: Tensor | None, m: Tensor, v: Tensor, lr: float) -> None:
    """One fused AdamW update in any mix of dtypes, without temporaries on a GPU; no bias correction."""
    weight, g = (param if master is None else master).float(), grad.float()
    m.copy_(m.float().lerp(g, 0.1))
    v.copy_(v.float().lerp(g.square(), 0.05))
    weight = weight * (1 - 0.01 * lr) - lr * m.float() / (v.float().sqrt() + 1e-8)
    if master is not None:
        master.copy_(weight)
    param.copy_(weight)


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@_rms_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


@_flash.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    b, n, s, h = q.shape
    return q.new_empty((b, s, n, h)).transpose(1, 2), q.new_empty((b, n, s), dtype=torch.float32)


@_flash_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@_adamw.register_fake
def _(param: Tensor, grad: Tensor, master: Tensor | None, m: Tensor, v: Tensor, lr: float) -> None:
    return None


def _rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _rms_norm_grad(ctx: Any, dy: Tensor, _drstd: None) -> tuple[Tensor, Tensor, None]:
    return *_rms_norm_backward(dy, *ctx.saved_tensors), None


def _flash_setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _flash_grad(ctx: Any, dout: Tensor, _dlse: None) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention 2's backward with its scratch: row sums, fp32 dq, for GQA dk and dv of every head."""
    q, k, v, out, lse = ctx.saved_tensors
    scratch = [torch.empty_like(lse)]
    if q.dtype != torch.float32:
        scratch.append(torch.empty_like(q, dtype=torch.float32))
    if q.shape[1] != k.shape[1]:
        scratch += [torch.empty_like(q), torch.empty_like(q)]
    grads = _flash_backward(dout, q, k, v, out, lse)
    del scratch
    return grads


_rms_norm.register_autograd(_rms_norm_grad, setup_context=_rms_norm_setup)
_flash.register_autograd(_flash_grad, setup_context=_flash_setup)


# ---- The reference transformer ----


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` through the fused kernel CUDA has."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D)."""
        return _rms_norm(x, self.weight, self.eps or 1e-6)[0]


def attend(q: Tensor, k: Tensor, v: Tensor, setup: Setup, mask: Tensor) -> Tensor:
    """Causal attention: q (B, N, S, H), k and v (B, K, S, H) -> (B, N, S, H); mask (S, S) is 0 or -inf."""
    if setup.attention == "flash":
        return _flash(q, k, v)[0]
    times = q.shape[1] // k.shape[1]
    k, v = _repeat(k, times), _repeat(v, times)
    scores = q @ k.mT * (q.shape[-1] ** -0.5) + mask
    probs = scores.softmax(-1, dtype=torch.float32).to(q.dtype) if setup.softmax_fp32 else scores.softmax(-1)
    return probs @ v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE, half-rotated; x (B, N, S, H), cos and sin (S, H) in x's dtype."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class LlamaBlock(nn.Module):
    """RMSNorm, grouped-query attention with RoPE, RMSNorm, SwiGLU; no biases."""

    def __init__(self, dims: Dims, setup: Setup) -> None:
        super().__init__()
        d, n, kv, h = dims.hidden, dims.heads, dims.kv_heads, dims.head_dim
        self.head_dim, self.setup = h, setup
        self.norm1, self.norm2 = RMSNorm(d), RMSNorm(d)
        self.q, self.o = nn.Linear(d, n * h, False), nn.Linear(n * h, d, False)
        self.k, self.v = nn.Linear(d, kv * h, False), nn.Linear(d, kv * h, False)
        self.gate, self.up = nn.Linear(d, dims.intermediate, False), nn.Linear(d, dims.intermediate, False)
        self.down = nn.Linear(dims.intermediate, d, False)

    def attention(self, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """x: (B, S, D), normalised."""
        b, s, _ = x.shape
        cos, sin, mask = tables
        q, k, v = (proj(x).view(b, s, -1, self.head_dim).transpose(1, 2) for proj in (self.q, self.k, self.v))
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, self.setup, mask)
        return self.o(out.transpose(1, 2).reshape(b, s, -1))

    def mlp(self, x: Tensor) -> Tensor:
        """x: (B, S, D), normalised."""
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """x: (B, S, D)."""
        x = x + self.attention(self.norm1(x), tables)
        return x + self.mlp(self.norm2(x))


class ExpertBlock(LlamaBlock):
    """A Llama block with a mixture of experts, as one GPU of an expert grid computes it with plain PyTorch.

    The exchange with the other GPUs is a lookup of rows: each expert of the GPU gets equally many.
    """

    def __init__(self, dims: Dims, setup: Setup) -> None:
        super().__init__(dataclasses.replace(dims, intermediate=1), setup)
        del self.gate, self.up, self.down
        self.dims, e, d, f = dims, dims.experts, dims.hidden, dims.intermediate
        self.router = nn.Linear(d, dims.choices, bias=False)
        self.gate, self.up = (nn.Parameter(torch.empty(e, f, d)) for _ in range(2))
        self.down = nn.Parameter(torch.empty(e, d, f))

    def mlp(self, x: Tensor) -> Tensor:
        """x: (B, S, D), normalised."""
        flat = x.flatten(0, -2)
        tokens, k = len(flat), self.dims.chosen
        scores = F.linear(flat.float(), self.router.weight.float()).softmax(-1)
        weights = scores.topk(k)[0].to(x.dtype)
        order = torch.arange(tokens * k * self.dims.gathered)  # any order serves a trace of fake tensors
        parts = flat[order // k % tokens].chunk(self.dims.experts)
        matrices = (self.gate.unbind(0), self.up.unbind(0), self.down.unbind(0))
        outs = [
            F.linear(F.silu(F.linear(part, gate)) * F.linear(part, up), down)
            for part, gate, up, down in zip(parts, *matrices, strict=True)
        ]
        in_order = torch.cat(outs)[order].view(self.dims.gathered, tokens, k, -1)
        return (in_order * weights[..., None]).sum(2).sum(0).view_as(x)


class Gpt2Block(nn.Module):
    """LayerNorm, attention with one q-k-v projection, LayerNorm, GELU MLP; biases throughout."""

    def __init__(self, dims: Dims, setup: Setup) -> None:
        super().__init__()
        d, n, kv, h = dims.hidden, dims.heads, dims.kv_heads, dims.head_dim
        self.head_dim, self.setup, self.widths = h, setup, (n * h, kv * h, kv * h)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.o = nn.Linear(d, sum(self.widths)), nn.Linear(n * h, d)
        self.up, self.down = nn.Linear(d, dims.intermediate), nn.Linear(dims.intermediate, d)

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, S, D), normalised."""
        b, s, _ = x.shape
        parts = self.qkv(x).split(self.widths, -1)
        q, k, v = (t.view(b, s, -1, self.head_dim).transpose(1, 2) for t in parts)
        return self.o(attend(q, k, v, self.setup, mask).transpose(1, 2).reshape(b, s, -1))

    def forward(self, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """x: (B, S, D)."""
        x = x + self.attention(self.norm1(x), tables[-1])
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Embedding, blocks, final norm, head; ``recompute_context`` wraps what "full" runs again in backward."""

    def __init__(self, dims: Dims, setup: Setup, seq: int) -> None:
        super().__init__()
        llama = setup.style == "llama"
        self.setup, self.dims = setup, dims
        self.recompute_context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self.embed = nn.Embedding(dims.vocab, dims.hidden)
        if not llama:
            self.positions = nn.Embedding(dims.positions or seq, dims.hidden)
        block = ExpertBlock if dims.choices else LlamaBlock if llama else Gpt2Block
        self.blocks = nn.ModuleList(block(dims, setup) for _ in range(dims.layers))
        self.norm = RMSNorm(dims.hidden) if llama else nn.LayerNorm(dims.hidden)
        self.head = nn.Linear(dims.hidden, dims.vocab, bias=False)
        if dims.tied:
            self.head.weight = self.embed.weight
        positions = torch.arange(seq)
        self.register_buffer("ids", positions)
        if llama:
            angles = positions[:, None] / 1e4 ** (torch.arange(0, dims.head_dim, 2) / dims.head_dim)
            self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
            self.register_buffer("sin", torch.cat((angles, angles), -1).sin())
        side = seq if setup.attention == "standard" else 0
        self.register_buffer("mask", torch.full((side, side), -math.inf).triu(1))

    def forward(self, ids: Tensor) -> Tensor | list[Tensor]:
        """ids (B, S) -> logits (B, S, V), or a list of chunks (B, S/8, V)."""
        x = self.embed(ids)
        tables: tuple[Tensor, ...] = (self.mask,)
        if self.setup.style == "llama":
            tables = (self.cos, self.sin, self.mask)
        else:
            x = x + self.positions(self.ids)
        for block in self.blocks:
            if self.setup.recompute == "full":
                contexts = lambda: (contextlib.nullcontext(), self.recompute_context())  # noqa: E731
                x = checkpoint(block, x, tables, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
            else:
                x = block(x, tables)
        x = self.norm(x)
        if self.setup.loss == "chunked":
            return [self.head(chunk) for chunk in x.chunk(8, dim=1)]
        return self.head(x)


def loss_of(logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy over every position, in fp32; of one chunk after another if the logits are a list."""
    if isinstance(logits, list):
        total = labels.new_zeros((), dtype=torch.float32)
        for part, wanted in zip(logits, labels.chunk(len(logits), dim=1), strict=True):
            total = total + F.cross_entropy(part.float().flatten(0, -2), wanted.flatten(), reduction="sum")
        return total / labels.numel()
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


class Optimizer:
    """Fused AdamW with master weights and gradients as ``setup`` says."""

    def __init__(self, params: list[nn.Parameter], setup: Setup) -> None:
        mixed = setup.precision == "bf16-mixed"
        state = torch.float32 if mixed else setup.dtype
        self.setup, self.params = setup, params
        self.masters = [p.detach().float() if mixed else None for p in params]
        self.moments = [(torch.zeros_like(p, dtype=state), torch.zeros_like(p, dtype=state)) for p in params]
        self.grads: dict[nn.Parameter, Tensor] = {}
        self.on_grad: Callable[[Tensor], None] = lambda grad: None
        for p in params:
            p.register_post_accumulate_grad_hook(self._take)
            if setup.persistent_gradients:
                self.grads[p] = torch.zeros_like(p, dtype=self._grad_dtype)

    @property
    def _grad_dtype(self) -> torch.dtype:
        mixed = self.setup.precision == "bf16-mixed"
        return torch.float32 if mixed and self.setup.gradients == "fp32" else self.setup.dtype

    def _take(self, p: nn.Parameter) -> None:
        """Move a finished gradient out of ``p.grad``, in the dtype asked for."""
        assert p.grad is not None
        if p in self.grads:
            self.grads[p].add_(p.grad)
        else:
            self.grads[p] = p.grad.to(self._grad_dtype)
        p.grad = None
        self.on_grad(self.grads[p])
        if self.setup.step == "backward":
            index = next(i for i, one in enumerate(self.params) if one is p)
            self._update(index)
            del self.grads[p]

    def states(self) -> Iterator[Tensor]:
        """Every tensor that outlives a step: masters and moments."""
        yield from (m for m in self.masters if m is not None)
        yield from (t for pair in self.moments for t in pair)

    def step(self) -> None:
        """Update every parameter."""
        if self.setup.step in ("foreach", "loop"):
            self._torch_step()
        elif self.setup.step == "fused":
            for index in range(len(self.params)):
                self._update(index)

    def _update(self, index: int) -> None:
        p, (m, v) = self.params[index], self.moments[index]
        _adamw(p.detach(), self.grads[p], self.masters[index], m, v, 1e-3)

    def _torch_step(self) -> None:
        """Run torch's own AdamW, without the read of its step counters, which fake tensors cannot give."""
        assert self.masters[0] is None
        adam = sys.modules["torch.optim.adam"]
        with unset_fake_temporarily():
            steps = [torch.tensor(1.0) for _ in self.params]
        read, adam._get_value = adam._get_value, lambda step: 2.0  # type: ignore[attr-defined]
        try:
            adam.adam(
                [p.detach() for p in self.params],
                [self.grads[p] for p in self.params],
                [m for m, _ in self.moments],
                [v for _, v in self.moments],
                [],
                steps,
                foreach=self.setup.step == "foreach",
                decoupled_weight_decay=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.95,
                lr=1e-3,
                weight_decay=0.01,
                eps=1e-8,
                maximize=False,
            )
        finally:
            adam._get_value = read  # type: ignore[attr-defined]

    def zero_grad(self) -> None:
        """Free the gradients, or empty the buffer that stays."""
        if self.setup.persistent_gradients:
            for grad in self.grads.values():
                grad.zero_()
        else:
            self.grads.clear()


def build(dims: Dims, setup: Setup, batch: int, seq: int) -> tuple[Transformer, Tensor, Tensor]:
    """The model with random weights, token ids (B, S) and labels; fake ones inside a ``FakeTensorMode``."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(setup.dtype)
    try:
        model = Transformer(dims, setup, seq)
        if setup.lora is not None:
            add_adapters(model, setup.lora)
    finally:
        torch.set_default_dtype(default)
    return model, torch.randint(dims.vocab, (batch, seq)), torch.randint(dims.vocab, (batch, seq))


def run_step(
    model: Transformer, optimizer: Optimizer, ids: Tensor, labels: Tensor, enter: Callable[[str], None]
) -> None:
    """One training step; ``enter`` is called with each phase as it starts."""
    optimizer.zero_grad()
    enter("forward")
    logits = model(ids)
    enter("loss")
    loss = loss_of(logits, labels)
    if not model.setup.keep_logits:
        del logits
    enter("backward")
    loss.backward()
    del loss
    enter("optimizer")
    optimizer.step()
