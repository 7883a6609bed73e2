"""Whole models on the kernels: `flash` and `fused` compared with `standard`.

There is one tiny model per kind of mixer and feed-forward. The tests cover every kind of cache, compilation, and the
FLOPs and saved bytes of the sizing table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from llmbench import model as models
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.errors import CannotRunError
from llmbench.kernels.proof.check import compare
from llmbench.model.cache import CACHE_KINDS
from llmbench.model.create import materialise
from llmbench.model.decoder import Decoder
from llmbench.model.implementations import implementation
from llmbench.model.latent import set_latent_form
from llmbench.model.mixers import new_cache
from llmbench.model.positions import tables_of
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.mixer import Attention, LatentAttention, Mamba, Mamba2, Mixer, QKNorm
from llmbench.spec.model import Head, Layer, ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import Alibi, LearnedPositions, NoPositions, Positions, Rope

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTH = 19
VOCABULARY = 57
GATED = Gated(intermediate_size=24)


def gqa(**fields: Any) -> Attention:
    defaults: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return Attention(**{**defaults, **fields})


def mla(**fields: Any) -> LatentAttention:
    defaults: dict[str, Any] = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    return LatentAttention(**{"num_attention_heads": 4, **defaults, **fields})


def moe(**fields: Any) -> MoE:
    defaults: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 12}
    return MoE(**{**defaults, **fields})


def spec_of(
    mixer: Mixer,
    ffn: FFN = GATED,
    *,
    layers: int = 1,
    positions: Positions | None = None,
    placement: str = "pre",
    **fields: Any,
) -> ModelSpec:
    layer: dict[str, Any] = {"mixer": mixer, "ffn": ffn, "placement": placement}
    defaults: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "tie_word_embeddings": False, **fields}
    positions = positions or Rope(interleaved=isinstance(mixer, LatentAttention))
    kinds, pattern = {"layer": Layer(**layer)}, f"{layers}*layer"
    return ModelSpec(
        name="tiny", source="a test", layers=kinds, pattern=pattern, positions=positions, **defaults
    ).check()


LAYER_NORM = Norm(kind="layernorm", bias=True)
DEEPSEEK = Router(scores="sigmoid", normalize=True, scale=2.5, correction="buffer", n_group=3, topk_group=2)
# Each placement of the norms, and each kind of mixer and feed-forward, has two layers once. The variants of a kind
# have one layer: what they change is inside of it.
SPECS: dict[str, ModelSpec] = {
    "mha": spec_of(gqa(num_key_value_heads=4, qkv_bias=True, output_bias=True), layers=2),
    "gqa": spec_of(gqa(), layers=2),
    "mqa, post norms": spec_of(gqa(num_key_value_heads=1), layers=2, placement="post", norm=LAYER_NORM),
    "window, sandwich": spec_of(
        gqa(sliding_window=5),
        Gated(intermediate_size=24, activation="gelu_tanh"),
        layers=2,
        placement="sandwich",
        norm=Norm(unit_offset=True),
        head=Head(soft_cap=3.0),
    ),
    "chunks": spec_of(gqa(attention_chunk_size=6)),
    "wide values": spec_of(gqa(v_head_dim=16)),
    "soft cap": spec_of(gqa(logit_soft_cap=2.0)),
    "sinks": spec_of(gqa(sinks=True, sliding_window=7)),
    "qk norm and gate": spec_of(gqa(qk_norm=QKNorm(), output_gate="elementwise")),
    "partial rotation, parallel": spec_of(
        gqa(), layers=2, positions=Rope(rotary_dim=4, interleaved=True), placement="parallel"
    ),
    "alibi": spec_of(gqa(), Dense(intermediate_size=24), positions=Alibi(), norm=LAYER_NORM),
    "learned": spec_of(gqa(), Dense(intermediate_size=24), layers=2, positions=LearnedPositions(num_positions=40)),
    "no positions, output norms": spec_of(gqa(), layers=2, positions=NoPositions(), placement="output"),
    "mla": spec_of(mla(q_lora_rank=16), layers=2),
    "mixture": spec_of(gqa(), moe(router=Router(normalize=True)), layers=2),
    "mixture, plain experts": spec_of(gqa(), moe(gated=False, activation="gelu", bias=True)),
    "mixture, oai": spec_of(gqa(), moe(activation="swiglu_oai", bias=True, router=Router(scores="softmax_topk"))),
    "mixture, shared": spec_of(mla(), moe(shared=SharedExperts(intermediate_size=16), router=DEEPSEEK)),
    "mixture, on input": spec_of(gqa(), moe(num_experts_per_tok=1, router=Router(scores="sigmoid", on_input=True))),
    "mixture, capacity": spec_of(gqa(), moe(capacity_factor=0.75)),
    "mamba": spec_of(
        Mamba(intermediate_size=32, state_size=4, conv_kernel=4, time_step_rank=4), layers=2, positions=NoPositions()
    ),
    "mamba2": spec_of(
        Mamba2(num_heads=4, head_dim=8, state_size=8, n_groups=2, conv_kernel=4, chunk_size=4),
        layers=2,
        positions=NoPositions(),
    ),
}


def built(spec: ModelSpec, impl: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model with weights large enough that attention and routing are uneven; the same for every `impl`."""
    model = models.build(spec, impl=impl, init="gpt2")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "A_log" not in name:
                spread = torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.dim() > 1 else 0.1)
                tensor.add_(spread)
    model = model.to(DEVICE, dtype)
    for module in model.modules():
        if getattr(module, "correction", None) is not None:
            module.correction = module.correction.float()
    return model


def tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1)).to(DEVICE)


def results(model: Decoder, loss: bool = False) -> dict[str, Tensor]:
    """The logits, or the loss, and every gradient."""
    ids = tokens()
    if loss:
        targets = ids.roll(-1, dims=1).masked_fill(ids % 5 == 0, -100)
        out = model(ids, targets=targets)
        out.backward()
    else:
        out = model(ids)
        out.float().square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **grads}


def assert_close(actual: Tensor, wanted: Tensor, name: str = "", within: float = 2e-5) -> None:
    """Assert an error of at most `within` of the largest value; 0.02 on a GPU, where products are tf32."""
    error = float((actual.double() - wanted.double()).abs().max() / (wanted.abs().max() + 1e-12))
    assert error <= (0.02 if DEVICE.type == "cuda" else within), (name, error)


@pytest.mark.parametrize(
    ("impl", "name"), [("fused", name) for name in SPECS] + [("flash", name) for name in ("gqa", "mla", "alibi")]
)
def test_logits_and_gradients_are_those_of_standard(impl: str, name: str) -> None:
    """In fp32. `fused` has the same functions for attention as `flash`, whose other steps are plain torch."""
    for step in ("attend", "attend_latent"):
        assert getattr(implementation("fused"), step) is getattr(implementation("flash"), step)
    wanted, actual = (results(built(SPECS[name], which), loss=impl == "fused") for which in ("standard", impl))
    assert wanted.keys() == actual.keys()
    for part in wanted:
        assert_close(actual[part], wanted[part], part, 1e-4 if part != "out" else 2e-5)


@pytest.mark.parametrize("name", ["window, sandwich", "alibi", "mla"])
def test_narrow_formats_are_within_budget(name: str) -> None:
    """In bf16, the error may be twice that of plain torch in bf16, plus one rounding.

    All tensors are compared as one, because errors in a few elements may cancel by chance."""
    exact, plain, actual = (
        results(built(SPECS[name], impl, dtype))
        for impl, dtype in (("standard", torch.float32), ("standard", torch.bfloat16), ("fused", torch.bfloat16))
    )
    whole = [
        torch.cat([part.flatten() / exact[key].norm() for key, part in tensors.items()])
        for tensors in (actual, plain, exact)
    ]
    verdict = compare(name, *whole)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("gqa", "mla", "window, sandwich") for kind in CACHE_KINDS]
    + [(name, kind) for name in ("chunks", "sinks", "alibi", "soft cap") for kind in ("rolling", "paged")],
)
def test_caches_are_read_in_place(name: str, kind: str) -> None:
    """Compare with `standard` on the same kind of cache: padded prefill, single steps, a padded step, a long one.

    `gqa` has two layers on every kind of cache. The others have one: the cache of a layer does not know the others.
    Caches change attention only, so most of them run with `flash`, which interprets no other kernels."""
    logits = []
    rows = tokens(3, 40)
    spec = override(SPECS[name], {"num_hidden_layers": 2 if name == "gqa" else 1})
    for impl in ("standard", "fused" if kind in ("dense", "paged") and name in ("gqa", "mla") else "flash"):
        model = built(spec, impl)
        cache = new_cache(model.spec, 3, 40, kind=kind, dtype=torch.float32, device=DEVICE, **_blocks(kind))
        lengths, outputs = [0, 0, 0], []
        with torch.no_grad():
            for new in ([7, 2, 4], [1, 1, 1], [3, 0, 5], [1, 0, 1], [10, 9, 3], [1, 1, 1]):
                length = max(new)
                piece = torch.stack([rows[row, at : at + length] for row, at in enumerate(lengths)])
                ragged = None if min(new) == length else torch.tensor(new, device=DEVICE)
                out = model(piece, cache=cache, lengths=ragged)
                outputs += [out[row, :count] for row, count in enumerate(new)]
                lengths = [at + count for at, count in zip(lengths, new, strict=True)]
        logits.append(torch.cat(outputs))
    assert_close(logits[1], logits[0])


def _blocks(kind: str) -> dict[str, int]:
    return {"block_size": 4} if "paged" in kind else {}


def test_absorbed_latents_without_a_cache() -> None:
    wanted, actual = (built(SPECS["mla"], impl) for impl in ("standard", "flash"))
    for model in (wanted, actual):
        set_latent_form(model, "absorbed")
    with torch.no_grad():
        assert_close(actual(tokens(2, 8)), wanted(tokens(2, 8)))
        with pytest.raises(CannotRunError, match="absorbed MLA for at most 8"):
            actual(tokens(2, 9))
    with pytest.raises(CannotRunError, match="no backward"):
        actual(tokens(2, 8))


@pytest.mark.parametrize("name", ["window, sandwich", "mla", "mixture", "alibi"])
def test_a_block_compiles_without_graph_breaks(name: str) -> None:
    """The compiled block and its gradient equal the eager ones."""
    spec = SPECS[name]
    model = built(spec, "fused")
    positions = torch.arange(LENGTH, device=DEVICE).expand(2, -1)
    step = Step(positions, None, True, tables_of(model.rotations, positions, LENGTH), implementation("fused"))
    x = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    torch._dynamo.reset()
    compiled_x, eager_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    block = model.layers[0]
    out = torch.compile(block, fullgraph=True, backend="aot_eager")(Residual(compiled_x), step, None, None)[0].whole()
    expected = block(Residual(eager_x), step, None, None)[0].whole()
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(compiled_x.grad, eager_x.grad)


@pytest.mark.parametrize("name", [name for name in SPECS if not name.startswith("mamba") and "capacity" not in name])
def test_counted_flops_equal_those_of_the_table(name: str) -> None:
    """Unmasked score pairs, products of experts, and the vocabulary as logits or in the loss, on meta tensors."""
    spec = SPECS[name]
    model = models.build(spec, impl="fused", device="meta")
    length = 18  # whole chunks, because packed sequences without data count as equally long
    ids = torch.zeros((2, length), dtype=torch.int64, device="meta")
    for targets in (None, ids):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, targets=targets)
        assert counter.get_total_flops() == sum(
            op.count * op.forward_flops for op in lower(spec, Workload.train(length, 2)) if op.kind != "loss"
        )


def test_unsupported_models_are_refused() -> None:
    """There is no silent fallback to another implementation."""
    for spec, message in (
        (spec_of(gqa(head_dim=12)), "multiples of 8"),
        (spec_of(gqa(), Gated(intermediate_size=8, activation="mish")), "does not support the activation mish"),
        (spec_of(gqa(), moe(router=Router(scores="sparsemixer"))), "router scores sparsemixer"),
        (spec_of(gqa(), moe(router=Router(on_input=True))), "if a token has several experts"),
    ):
        with pytest.raises(CannotRunError, match=message):
            built(spec, "fused")(tokens())


RELATIVE_BIAS = {"glam-64b", "switch-base-128", *(f"t5-{size}" for size in ("small", "base", "11b"))} | {
    f"flan-t5-{size}" for size in ("base", "xl", "xxl")
}
SELECTED_KEYS = {"deepseek-v3.2"}


def test_flash_computes_the_attention_of_every_bundled_model() -> None:
    """The exceptions add a bias to the scores: a learned bias per distance, or −∞ for keys that an indexer left out."""
    refused = {}
    for name in bundled_models():
        spec = layer_of_each_kind(load_bundled(name))
        ids = torch.zeros((1, 16), dtype=torch.int64, device="meta")
        more = {} if spec.encoder is None else {"encoder_tokens": ids}
        try:
            with torch.no_grad():
                models.build(spec, impl="flash", device="meta")(ids, **more)
        except CannotRunError as refusal:
            refused[name] = str(refusal)
    assert set(refused) == RELATIVE_BIAS | SELECTED_KEYS
    assert set(refused.values()) == {"impl flash does not support a bias on scores"}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="for a machine without a GPU")
def test_without_the_interpreter_a_cpu_has_no_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmbench.kernels import launching

    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(launching, "interpreted", lambda: False)
    with torch.no_grad():
        assert_close(built(SPECS["gqa"], "flash")(tokens()), built(SPECS["gqa"], "standard")(tokens()))
        with pytest.raises(CannotRunError, match="needs a GPU"):
            built(SPECS["gqa"], "fused")(tokens())


@pytest.mark.parametrize("name", ["llama3.2-1b", "qwen3-0.6b", "phi-3-mini"])
def test_saved_bytes_equal_those_of_the_memory_table(name: str) -> None:
    """The bytes that fused kernels of dense models save for the backward pass, on fake tensors.

    The loss is left out, because ours saves gradients in place of activations. All layers save the tables of the
    rotation once."""
    spec = override(load_bundled(name), {"num_hidden_layers": 2})
    kinds: dict[str, Any] = {"weight_dtype": "bf16", "activation_dtype": "bf16", "kernels": "fused"}
    wanted = sum(op.count * op.saved_bytes for op in lower(spec, Workload.train(256, 2, **kinds)) if op.kind != "loss")
    with FakeTensorMode():
        model = models.build(spec, impl="fused", device="meta")
        materialise(model, device="cpu", dtype=torch.bfloat16)
        ids = torch.zeros((2, 256), dtype=torch.int64)
        tables = sum(2 * rotation.width // 2 * ids.numel() * 4 for rotation in model.rotations)
        storages = {x.untyped_storage()._cdata: 0 for x in (*model.parameters(), *model.buffers())}
        storages_alive: list[Any] = []

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            storages_alive.append(storage)  # so that no address is reused
            storages.setdefault(storage._cdata, storage.nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(ids)
    assert sum(storages.values()) == pytest.approx(wanted + tables, rel=0.001)
