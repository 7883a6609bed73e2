"""Encoders with a masked-language-model head, and encoder-decoders."""

from __future__ import annotations

from llmbench.model.weights.families import table


def _bert_top(at: str) -> str:
    """BERT's tables; the oldest files say gamma and beta."""
    norm = f"{at}.embeddings.LayerNorm"
    return f"""
    embedding.weight                {at}.embeddings.word_embeddings.weight
    position_embedding.weight       {at}.embeddings.position_embeddings.weight
    token_type_embedding.weight     {at}.embeddings.token_type_embeddings.weight
    embedding_norm.*                {norm}.*
    embedding_norm.weight           {norm}.gamma
    embedding_norm.bias             {norm}.beta
    """


_BERT_LAYERS = """
attention.q_proj.*      attention.self.query.*
attention.k_proj.*      attention.self.key.*
attention.v_proj.*      attention.self.value.*
attention.o_proj.*      attention.output.dense.*
mixer_norm.*            attention.output.LayerNorm.*
mixer_norm.weight       attention.output.LayerNorm.gamma
mixer_norm.bias         attention.output.LayerNorm.beta
ffn.up_proj.*           intermediate.dense.*
ffn.down_proj.*         output.dense.*
ffn_norm.*              output.LayerNorm.*
ffn_norm.weight         output.LayerNorm.gamma
ffn_norm.bias           output.LayerNorm.beta
"""

_DEBERTA_ATTENTION = """
attention.q_proj.*      attention.self.query_proj.*
attention.k_proj.*      attention.self.key_proj.*
attention.v_proj.*      attention.self.value_proj.*
"""

# The same, with norms before each sublayer and behind the last.
_ROBERTA_PRE_NORM = """
mixer_norm.*            attention.LayerNorm.*
ffn_norm.*              intermediate.LayerNorm.*
"""
_XL_PRE_NORM = """
mixer_norm.*            attention.self_attn_layer_norm.*
ffn_norm.*              LayerNorm.*
"""
_MEGATRON_PRE_NORM = """
mixer_norm.*            attention.ln.*
ffn_norm.*              ln.*
"""

for _family, _at, _norms, _last in (
    ("bert", "bert", "", ""),
    ("ernie", "ernie", "", ""),
    ("deberta-v2", "deberta", _DEBERTA_ATTENTION, ""),
    ("megatron-bert", "bert", _MEGATRON_PRE_NORM, "bert.encoder.ln"),
):
    table(
        _family,
        top=_bert_top(_at)
        + f"""
        final_norm.*            {_last}.*
        head.transform.*        cls.predictions.transform.dense.*
        head.norm.*             cls.predictions.transform.LayerNorm.*
        head.norm.weight        cls.predictions.transform.LayerNorm.gamma
        head.norm.bias          cls.predictions.transform.LayerNorm.beta
        head.bias               cls.predictions.bias
        lm_head.weight          cls.predictions.decoder.weight
        """,
        layers=_norms + _BERT_LAYERS,
        at=_at + ".encoder.layer.{i}.",
        ignored=r"\w+\.pooler\..*|cls\.seq_relationship\..*|\w+\.embeddings\.position_ids|cls\.predictions\.decoder\.bias",
    )

for _family, _at, _norms, _last in (
    ("roberta", "roberta", "", ""),
    ("xlm-roberta", "roberta", "", ""),
    ("camembert", "roberta", "", ""),
    ("data2vec-text", "data2vec_text", "", ""),
    ("roberta-prelayernorm", "roberta_prelayernorm", _ROBERTA_PRE_NORM, "roberta_prelayernorm.LayerNorm"),
    ("xlm-roberta-xl", "roberta", _XL_PRE_NORM, "roberta.encoder.LayerNorm"),
):
    table(
        _family,
        top=_bert_top(_at)
        + f"""
        final_norm.*            {_last}.*
        head.transform.*        lm_head.dense.*
        head.norm.*             lm_head.layer_norm.*
        lm_head.bias            lm_head.bias
        lm_head.weight          lm_head.decoder.weight
        """,
        layers=_norms + _BERT_LAYERS,
        at=_at + ".encoder.layer.{i}.",
        ignored=r"\w+\.pooler\..*|\w+\.embeddings\.position_ids|lm_head\.decoder\.bias",
    )

table(
    "mpnet",
    top=_bert_top("mpnet")
    + """
    layers.0.attention.relative_bias    mpnet.encoder.relative_attention_bias.weight
    head.transform.*        lm_head.dense.*
    head.norm.*             lm_head.layer_norm.*
    lm_head.bias            lm_head.bias
    lm_head.weight          lm_head.decoder.weight
    """,
    layers="""
    attention.q_proj.*      attention.attn.q.*
    attention.k_proj.*      attention.attn.k.*
    attention.v_proj.*      attention.attn.v.*
    attention.o_proj.*      attention.attn.o.*
    mixer_norm.*            attention.LayerNorm.*
    """
    + _BERT_LAYERS,
    at="mpnet.encoder.layer.{i}.",
    ignored=r"mpnet\.pooler\..*|mpnet\.embeddings\.position_ids|lm_head\.decoder\.bias",
)

table(
    "electra",
    top=_bert_top("electra")
    + """
    embedding_projection.*  electra.embeddings_project.*
    head.transform.*        generator_predictions.dense.*
    head.norm.*             generator_predictions.LayerNorm.*
    lm_head.*               generator_lm_head.*
    """,
    layers=_BERT_LAYERS,
    at="electra.encoder.layer.{i}.",
    ignored=r"electra\.embeddings\.position_ids",
)
table(
    "distilbert",
    top=_bert_top("distilbert")
    + """
    head.transform.*        vocab_transform.*
    head.norm.*             vocab_layer_norm.*
    lm_head.*               vocab_projector.*
    """,
    layers="""
    attention.q_proj.*      attention.q_lin.*
    attention.k_proj.*      attention.k_lin.*
    attention.v_proj.*      attention.v_lin.*
    attention.o_proj.*      attention.out_lin.*
    mixer_norm.*            sa_layer_norm.*
    ffn.up_proj.*           ffn.lin1.*
    ffn.down_proj.*         ffn.lin2.*
    ffn_norm.*              output_layer_norm.*
    """,
    at="distilbert.transformer.layer.{i}.",
)

table(
    "nomic_bert",
    top=_bert_top("nomic_bert")
    + """
    embedding_norm.*        nomic_bert.emb_ln.*
    head.transform.*        cls.predictions.transform.dense.*
    head.norm.*             cls.predictions.transform.layer_norm.*
    head.bias               cls.predictions.bias
    lm_head.weight          cls.predictions.decoder.weight
    """,
    layers="""
    attention.q_proj.*      attn.Wqkv.*                 plain.q
    attention.k_proj.*      attn.Wqkv.*                 plain.k
    attention.v_proj.*      attn.Wqkv.*                 plain.v
    attention.o_proj.*      attn.out_proj.*
    mixer_norm.*            norm1.*
    ffn.up_proj.*           mlp.fc11.*
    ffn.gate_proj.*         mlp.fc12.*
    ffn.down_proj.*         mlp.fc2.*
    ffn_norm.*              norm2.*
    """,
    at="nomic_bert.encoder.layers.{i}.",
    ignored=r"nomic_bert\.pooler\..*|cls\.predictions\.decoder\.bias",
)

_T5_ATTENTION = """
attention.q_proj.*          layer.0.SelfAttention.q.*
attention.k_proj.*          layer.0.SelfAttention.k.*
attention.v_proj.*          layer.0.SelfAttention.v.*
attention.o_proj.*          layer.0.SelfAttention.o.*
attention.relative_bias     layer.0.SelfAttention.relative_attention_bias.weight
mixer_norm.*                layer.0.layer_norm.*
"""


def _t5_ffn(place: int) -> str:
    """The feed-forward, sublayer 1 of the encoder's layers and 2 of the decoder's; gated where the file has wi_0, or
    Switch's, with its experts."""
    at = f"layer.{place}"
    return f"""
    ffn.gate_proj.*         {at}.DenseReluDense.wi_0.*
    ffn.up_proj.*           {at}.DenseReluDense.wi_1.*
    ffn.up_proj.*           {at}.DenseReluDense.wi.*
    ffn.down_proj.*         {at}.DenseReluDense.wo.*
    ffn.up_proj.*           {at}.mlp.wi.*
    ffn.down_proj.*         {at}.mlp.wo.*
    ffn.router.*            {at}.mlp.router.classifier.*
    ffn.experts.up_proj     {at}.mlp.experts.expert_{{e}}.wi.weight
    ffn.experts.down_proj   {at}.mlp.experts.expert_{{e}}.wo.weight
    ffn_norm.*              {at}.layer_norm.*
    """


def _in_encoder(layers: str) -> str:
    """The same rules for layers of the encoder."""
    lines = (line.split() for line in layers.strip().splitlines())
    return "\n".join(f"encoder.layers.{{i}}.{words[0]} encoder.block.{{i}}.{words[1]}" for words in lines if words)


table(
    "t5",
    "mt5",
    "umt5",
    "switch_transformers",
    "longt5",
    top="""
    embedding.weight        shared.weight
    embedding.weight        decoder.embed_tokens.weight
    encoder.final_norm.*    encoder.final_layer_norm.*
    final_norm.*            decoder.final_layer_norm.*
    lm_head.*               lm_head.*
    """
    + _in_encoder(_T5_ATTENTION + _T5_ATTENTION.replace(".SelfAttention.", ".LocalSelfAttention.") + _t5_ffn(1)),
    layers=_T5_ATTENTION
    + """
    cross_attention.q_proj.*    layer.1.EncDecAttention.q.*
    cross_attention.k_proj.*    layer.1.EncDecAttention.k.*
    cross_attention.v_proj.*    layer.1.EncDecAttention.v.*
    cross_attention.o_proj.*    layer.1.EncDecAttention.o.*
    cross_norm.*                layer.1.layer_norm.*
    """
    + _t5_ffn(2),
    at="decoder.block.{i}.",
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
