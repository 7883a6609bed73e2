"""Right solutions of the function exercises, in another form than the references."""

import math

import torch


def rmsnorm(x, weight, eps):
    return weight * (x * (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** -0.5)


def layernorm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight + bias


def sinusoidal_positions(positions, width):
    angles = positions[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    out = torch.empty(len(positions), width)
    out[:, 0::2], out[:, 1::2] = angles.sin(), angles.cos()
    return out


def rope(x, positions, theta):
    half = x.shape[-1] // 2
    inverse = torch.exp(-math.log(theta) * torch.arange(half).float() / half)
    angle = torch.outer(positions.float(), inverse)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def alibi_slopes(num_heads):
    def of_power(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(num_heads).is_integer():
        return of_power(num_heads)
    below = 2 ** math.floor(math.log2(num_heads))
    return of_power(below) + of_power(2 * below)[0::2][: num_heads - below]


def causal_attention(q, k, v):
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(k.shape[-2] - q.shape[-2] + 1)
    scores = torch.einsum("bnsh,bnth->bnst", q / math.sqrt(q.shape[-1]), k).masked_fill(hidden, -math.inf)
    return torch.einsum("bnst,bnth->bnsh", scores.softmax(-1), v)


def gqa_attention(q, k, v):
    B, N, S, H = q.shape
    groups = q.view(B, k.shape[1], -1, S, H)
    k, v = k[:, :, None], v[:, :, None]
    return torch.nn.functional.scaled_dot_product_attention(groups, k, v, is_causal=True).reshape(B, N, S, H)


def flash_attention(q, k, v, block):
    m = torch.full((q.shape[0], 1), -math.inf)
    total, out = torch.zeros_like(m), torch.zeros_like(q)
    for start in range(0, k.shape[0], block):
        s = q @ k[start : start + block].T / math.sqrt(q.shape[-1])
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p, f = torch.exp(s - new), torch.exp(m - new)
        total, out, m = total * f + p.sum(-1, keepdim=True), out * f + p @ v[start : start + block], new
    return out / total


def swiglu(x, gate, up, down):
    inner = x @ gate.T
    return (inner / (1 + torch.exp(-inner)) * (x @ up.T)) @ down.T


def moe_routing(logits, k):
    weights, chosen = torch.topk(torch.softmax(logits, -1), k)
    return weights / weights.sum(-1, keepdim=True), chosen


def cross_entropy(logits, targets):
    seen = targets != -100
    logits, targets = logits[seen], targets[seen]
    return (logits.logsumexp(-1) - logits[torch.arange(len(targets)), targets]).mean()


def adamw_step(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    m = m.lerp(g, 1 - beta1)
    v = v.mul(beta2).addcmul(g, g, value=1 - beta2)
    step = lr / (1 - beta1**t)
    return w.mul(1 - lr * decay).addcdiv(m, (v / (1 - beta2**t)).sqrt() + eps, value=-step), m, v
