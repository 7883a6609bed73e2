"""Encoders and encoder-decoders: their logits equal transformers', with padding, and with decoding step by step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from llmbench import model as models
from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.model.decoder import Decoder
from llmbench.model.mixers import new_cache
from llmbench.model.seq2seq import Seq2Seq, model_of
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import load_config
from llmbench.spec.override import override

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SMALL),
    "bert, another activation": ("bert", {**SMALL, "hidden_act": "gelu_new", "type_vocab_size": 3}),
    "roberta": ("roberta", SMALL),
    "roberta, another padding token": ("roberta", {**SMALL, "pad_token_id": 2, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {**SMALL, "type_vocab_size": 1}),
    "camembert": ("camembert", {**SMALL, "type_vocab_size": 1}),
    "data2vec": ("data2vec-text", {**SMALL, "type_vocab_size": 1}),
    "ernie": ("ernie", SMALL),
    "deberta-v2, without scores by distance": ("deberta-v2", SMALL),
    "megatron-bert": ("megatron-bert", SMALL),
    "roberta, norms first": ("roberta-prelayernorm", SMALL),
    "xlm-roberta-xl": ("xlm-roberta-xl", SMALL),
    "mpnet": ("mpnet", SMALL),
    "eurobert": ("eurobert", {**SMALL, "pad_token_id": 0, "num_key_value_heads": 2}),
    "eurobert, biases": ("eurobert", {**SMALL, "pad_token_id": 0, "attention_bias": True, "mlp_bias": True}),
    "nomic": ("nomic_bert", {**SMALL, "head_dim": 8}),
    "modernbert": ("modernbert", {**SMALL, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0}),
    "roformer": ("roformer", {**SMALL, "embedding_size": 16}),
    "big_bird, full attention": ("big_bird", {**SMALL, "attention_type": "original_full", "use_bias": False}),
    "longformer, without global tokens": ("longformer", {**SMALL, "attention_window": [6, 8]}),
    "flaubert": ("flaubert", {"vocab_size": 96, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "rembert": ("rembert", {**SMALL, "input_embedding_size": 16, "output_embedding_size": 24}),
    "electra": ("electra", {**SMALL, "embedding_size": 16}),
    "electra, one width": ("electra", {**SMALL, "embedding_size": 32}),
    "distilbert": (
        "distilbert",
        {"vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
NEAR = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
GATED = {"feed_forward_proj": "gated-gelu"}
SWITCH = {**T5, "num_layers": 4, "num_decoder_layers": 4, "num_experts": 4}
SWITCH |= {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}
BART = {"vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 64}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40}
BART |= {"pad_token_id": 0, "decoder_start_token_id": 1, "scale_embedding": True}
LED = {key: value for key, value in BART.items() if key not in ("max_position_embeddings", "scale_embedding")}
LED |= {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
GEMMA: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
GEMMA |= {"query_pre_attn_scalar": 12, "attn_logit_softcapping": None, "final_logit_softcapping": 5.0}
CAPPED = {**GEMMA, "attn_logit_softcapping": 3.0}
SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5),
    "t5, few buckets, other depth and width": ("t5", {**T5, **NEAR, "num_decoder_layers": 3, "d_kv": 12}),
    "t5 v1.1": ("t5", {**T5, **GATED, "tie_word_embeddings": False}),
    "t5 v1.1, a head of its own": ("t5", {**T5, **GATED, "tie_word_embeddings": False}),
    "mt5": ("mt5", {**T5, **GATED}),
    "umt5, a bias a layer": ("umt5", {**T5, **GATED}),
    "longt5, near by": ("longt5", {**T5, "local_radius": 3}),
    "bart": ("bart", BART),
    "mbart": ("mbart", BART),
    "blenderbot-small, norm before positions": ("blenderbot-small", BART),
    "pegasus, stored sinusoids": ("pegasus", BART),
    "marian, computed sinusoids": ("marian", {**BART, "decoder_vocab_size": 96}),
    "marian, two token tables": (
        "marian",
        {**BART, "vocab_size": 120, "decoder_vocab_size": 96, "share_encoder_decoder_embeddings": False},
    ),
    "m2m_100": ("m2m_100", BART),
    "led, without global tokens": ("led", {**LED, "attention_window": [6, 8]}),
    "t5gemma, soft caps": ("t5gemma", {"encoder": CAPPED, "decoder": CAPPED, "vocab_size": 96}),
    "t5gemma, a wider encoder": (
        "t5gemma",
        {"encoder": {**GEMMA, "hidden_size": 48}, "decoder": GEMMA, "vocab_size": 96},
    ),
    "bigbird_pegasus, full attention": ("bigbird_pegasus", {**BART, "attention_type": "original_full"}),
    "switch": ("switch_transformers", {**SWITCH, "expert_capacity": 21}),
    "switch, router with biases": ("switch_transformers", {**SWITCH, "expert_capacity": 21, "router_bias": True}),
}
CASES = {**ENCODERS, **SEQ2SEQ}


def saved(case: str, folder: Path) -> nn.Module:
    """A model of transformers with random weights, saved in the folder."""
    model_type, config = CASES[case]
    kind = transformers.AutoConfig.for_model(model_type, **config)
    auto = transformers.AutoModelForMaskedLM if case in ENCODERS else transformers.AutoModelForSeq2SeqLM
    theirs: nn.Module = auto.from_config(kind, attn_implementation="eager").float().eval()
    untied = "head of its own" in case
    if untied:  # files on the hub have an untied head; transformers 5 creates only tied ones
        theirs.lm_head.weight = nn.Parameter(torch.empty(96, 32))  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if model_type == "marian" and not tensor.requires_grad:  # some files lack its table of positions
                continue
            norm = tensor.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
            tensor.normal_(1.0 if norm else 0.0, 0.2, generator=generator)
        for name, tensor in theirs.named_buffers():
            if name == "final_logits_bias":
                tensor.normal_(0.0, 0.2, generator=generator)
    theirs.save_pretrained(folder)  # type: ignore[operator]
    if untied:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return theirs


def tokens(length: int, seed: int = 2) -> Tensor:
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(theirs).all()
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("impl", ["standard", "sdpa"])
@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_equal_transformers(case: str, impl: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    ours = models.load(tmp_path, impl=impl)
    ids, real = tokens(23), torch.arange(23) < torch.tensor([15, 23])[:, None]
    kinds = ids % (ours.spec.embedding.token_types or 1)
    inputs = {"token_type_ids": kinds} if ours.spec.embedding.token_types else {}
    with torch.no_grad():
        assert_close(ours(ids, token_types=kinds), theirs(ids, **inputs).logits)
        expected = theirs(ids, attention_mask=real.long(), **inputs).logits
        assert_close(ours(ids, token_types=kinds, lengths=torch.tensor([15, 23]))[real], expected[real])


@pytest.mark.parametrize("impl", ["standard", "sdpa"])
@pytest.mark.parametrize("case", SEQ2SEQ)
def test_encoder_decoders_equal_transformers_and_decoding_equals_one_pass(case: str, impl: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    ours = models.load(tmp_path, impl=impl)
    assert isinstance(ours, Seq2Seq)
    if case != "t5 v1.1":  # transformers 5 ties its head, which was not tied in training
        assert count_parameters(ours.spec).total == sum(parameter.numel() for parameter in theirs.parameters())
    if impl == "sdpa" and "soft caps" in case:
        with pytest.raises(CannotRunError, match="soft cap"):
            ours(tokens(17), tokens(21))
        return
    source, ids = tokens(21), tokens(17, seed=3)
    encoder_lengths = torch.tensor([13, 21])
    real = torch.arange(21) < encoder_lengths[:, None]
    with torch.no_grad():
        assert_close(ours(ids, source), theirs(input_ids=source, decoder_input_ids=ids, use_cache=False).logits)
        expected = theirs(input_ids=source, attention_mask=real.long(), decoder_input_ids=ids, use_cache=False).logits
        logits = ours(ids, source, encoder_lengths=encoder_lengths)
        assert_close(logits, expected)
        cache = new_cache(ours.spec, 2, 17, dtype=torch.float32, device="cpu")
        lengths = [4, 7]
        first = ours(ids[:, :7], source, encoder_lengths=encoder_lengths, cache=cache, lengths=torch.tensor(lengths))
        for row, length in enumerate(lengths):
            assert_close(first[row, :length], logits[row, :length])
        for step in range(10):
            new = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])
            out = ours(new[:, None], cache=cache)
            for row, length in enumerate(lengths):
                assert_close(out[row, 0], logits[row, length + step])


@pytest.mark.parametrize("impl", ["standard", "sdpa"])
def test_the_original_transformer_equals_the_module_of_torch(impl: str) -> None:
    """torch.nn.Transformer has the layers of the paper. It has no embedding, and adds a norm after each stack."""
    width, depth = 32, 2
    shape = {"hidden_size": width, "vocab_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape |= {"head_dim": 8, "intermediate_size": 48}
    patterns = {"pattern": f"{depth}*block", "encoder.pattern": f"{depth}*block", "embedding.scale": width**0.5}
    ours = models.build(override(load_bundled("transformer-base"), {**shape, **patterns}), impl=impl)
    theirs = nn.Transformer(width, 4, depth, depth, 48, dropout=0.0, layer_norm_eps=1e-6, batch_first=True).eval()
    theirs.encoder.norm = theirs.decoder.norm = None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in ours.parameters():
            tensor.normal_(0.0, 0.2, generator=generator)
        assert isinstance(ours, Seq2Seq)
        _copy_to_torch(ours, theirs)
    source, ids = tokens(21), tokens(17, seed=3)
    table = ours.embedding.weight
    with torch.no_grad():
        out = theirs(
            table[source] * width**0.5 + sines(21, width),
            table[ids] * width**0.5 + sines(17, width),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(17),
        )
        assert_close(ours(ids, source), out @ table.T)


def sines(length: int, width: int) -> Tensor:
    """The position encoding, element by element as the formula of the paper says (section 3.5)."""
    rows = [
        [(math.cos if i % 2 else math.sin)(p / 10000 ** (2 * (i // 2) / width)) for i in range(width)]
        for p in range(length)
    ]
    return torch.tensor(rows)


def _copy_to_torch(ours: Seq2Seq, theirs: nn.Transformer) -> None:
    """Copy our weights into torch's module. Its attention also has biases. They become 0."""
    names = {"attention": "self_attn", "cross_attention": "multihead_attn"}
    norms = {"mixer_norm": "norm1", "cross_norm": "norm2", "ffn_norm": "norm3"}
    for stack, copy in ((ours.encoder, theirs.encoder), (ours, theirs.decoder)):
        for block, layer in zip(stack.layers, copy.layers, strict=True):
            for name, module in block.named_children():
                if name in names:
                    theirs_attention = layer.get_submodule(names[name])
                    parts = [getattr(module, f"{part}_proj").weight for part in "qkv"]
                    theirs_attention.in_proj_weight.copy_(torch.cat(parts))
                    theirs_attention.out_proj.weight.copy_(module.o_proj.weight)
                    theirs_attention.in_proj_bias.zero_()
                    theirs_attention.out_proj.bias.zero_()
                elif name in norms:
                    last = stack is ours.encoder and name == "ffn_norm"
                    layer.get_submodule("norm2" if last else norms[name]).load_state_dict(module.state_dict())
            layer.linear1.load_state_dict(block.ffn.up_proj.state_dict())
            layer.linear2.load_state_dict(block.ffn.down_proj.state_dict())


def test_an_untied_head_has_its_own_weight(tmp_path: Path) -> None:
    saved("t5 v1.1, a head of its own", tmp_path)
    ours = models.load(tmp_path)
    assert not torch.equal(ours.lm_head.weight, ours.embedding.weight)
    assert ours.spec.head.scale == 1.0


def test_a_decoder_without_its_encoder_is_refused() -> None:
    spec = load_bundled("t5-small")
    with pytest.raises(UnsupportedError, match="has an encoder"):
        Decoder(spec)
    small = override(spec, {"hidden_size": 32})
    model = models.build(small, init="empty")
    with pytest.raises(CannotRunError, match="encoder_tokens"):
        model(tokens(4))


@pytest.mark.parametrize(
    "name",
    [
        "bert-base",
        "bert-large",
        "t5-small",
        "t5-base",
        "flan-t5-base",
        "flan-t5-xl",
        "transformer-base",
        "transformer-big",
    ],
)
def test_parameters_and_names_equal_the_sizing_table(name: str) -> None:
    spec = load_bundled(name)
    with torch.device("meta"):
        model = model_of(spec)
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total
    names = {name for op in lower(spec, Workload.prefill(8)) for name in op.names()}
    for parameter, _ in model.named_parameters():
        module = parameter.removesuffix(".weight").removesuffix(".bias")
        assert parameter in names or module in names, parameter


@pytest.mark.parametrize("name", ["bert-base", "t5-small", "flan-t5-base", "transformer-base"])
def test_gradients_reach_every_parameter(name: str) -> None:
    spec = override(
        load_bundled(name),
        {"hidden_size": 32, "vocab_size": 96, "pattern": "2*block"}
        | ({} if name == "bert-base" else {"encoder.pattern": "2*block"}),
    )
    model = models.build(spec, dtype=torch.bfloat16)
    # Long enough for T5's buckets of large distances.
    ids, source = tokens(200), tokens(260, seed=3)
    out = model(ids, token_types=ids % 2) if name == "bert-base" else model(ids, source)
    out.float().logsumexp(-1).square().mean().backward()
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None, parameter
        assert torch.isfinite(tensor.grad).all(), parameter
        assert tensor.grad.abs().max() > 0, parameter


def test_a_new_table_of_sines_has_the_values_of_transformers(tmp_path: Path) -> None:
    config = transformers.RoFormerConfig(**SMALL)
    config.save_pretrained(tmp_path)
    table = models.build(load_config(tmp_path)).rotary_table
    theirs = transformers.RoFormerModel(config).encoder.embed_positions.weight
    assert table is not None
    assert torch.equal(table.weight, theirs)


@pytest.mark.parametrize("where", ["positions", "encoder.positions"])
def test_each_stack_has_its_own_positions(where: str) -> None:
    """The bias tables of encoder and decoder have their own number of buckets."""
    spec = override(load_bundled("t5-small"), {f"{where}.num_buckets": 6})
    model = models.build(spec, device="meta")
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total
