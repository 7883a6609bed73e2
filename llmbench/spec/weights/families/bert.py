"""Weight names of BERT and of the encoders derived from it, with their masked-LM heads."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP


def bert_top(at: str) -> str:
    """Return the rules of BERT's embeddings. `at` is the prefix of the names in the file.

    The oldest files call the weight of a norm gamma, and the bias of a norm beta.
    """
    norm = f"{at}.embeddings.LayerNorm"
    return f"""
    embedding.weight                {at}.embeddings.word_embeddings.weight
    position_embedding.weight       {at}.embeddings.position_embeddings.weight
    token_type_embedding.weight     {at}.embeddings.token_type_embeddings.weight
    embedding_norm.*                {norm}.*
    embedding_norm.weight           {norm}.gamma
    embedding_norm.bias             {norm}.beta
    """


BERT_LAYERS = """
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

# The next three groups of rules are for layers with norms before their sublayers. The norm after the last layer has a
# different name in each family: see `final_norm` below.
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


def bert_table(family: str, at: str, *, top: str = "", layers: str = "", final_norm: str = "") -> None:
    """Register a family that has BERT's head.

    - `at`: the prefix of the names in the file.
    - `top`: rules outside the layers that BERT does not have.
    - `layers`: rules that take precedence over the rules of BERT's layers.
    - `final_norm`: the name of the norm after the last layer, in the file.
    """
    table(
        family,
        top=bert_top(at)
        + f"""
        final_norm.*            {final_norm}.*
        head.transform.*        cls.predictions.transform.dense.*
        head.norm.*             cls.predictions.transform.LayerNorm.*
        head.norm.weight        cls.predictions.transform.LayerNorm.gamma
        head.norm.bias          cls.predictions.transform.LayerNorm.beta
        head.bias               cls.predictions.bias
        lm_head.weight          cls.predictions.decoder.weight
        """
        + top,
        layers=layers + BERT_LAYERS,
        at=at + ".encoder.layer.{i}.",
        ignored=r"\w+\.pooler\..*|cls\.seq_relationship\..*|\w+\.embeddings\.position_ids|"
        r"cls\.predictions\.decoder\.bias",
    )


def _roberta_table(family: str, at: str, *, layers: str = "", final_norm: str = "") -> None:
    """Register a family that has RoBERTa's head. The arguments are those of `bert_table`."""
    table(
        family,
        top=bert_top(at)
        + f"""
        final_norm.*            {final_norm}.*
        head.transform.*        lm_head.dense.*
        head.norm.*             lm_head.layer_norm.*
        lm_head.bias            lm_head.bias
        lm_head.weight          lm_head.decoder.weight
        """,
        layers=layers + BERT_LAYERS,
        at=at + ".encoder.layer.{i}.",
        ignored=r"\w+\.pooler\..*|\w+\.embeddings\.position_ids|lm_head\.decoder\.bias",
    )


bert_table("bert", "bert")
bert_table("deberta-v2", "deberta", layers=_DEBERTA_ATTENTION)
bert_table(
    "roformer",
    "roformer",
    top="""
    embedding_projection.*  roformer.embeddings_project.*
    rotary_table.weight     roformer.encoder.embed_positions.weight
    """,
)
bert_table("megatron-bert", "bert", layers=_MEGATRON_PRE_NORM, final_norm="bert.encoder.ln")

_roberta_table("roberta", "roberta")
_roberta_table("xlm-roberta", "roberta")
_roberta_table("camembert", "roberta")
_roberta_table("data2vec-text", "data2vec_text")
_roberta_table(
    "roberta-prelayernorm",
    "roberta_prelayernorm",
    layers=_ROBERTA_PRE_NORM,
    final_norm="roberta_prelayernorm.LayerNorm",
)
_roberta_table("xlm-roberta-xl", "roberta", layers=_XL_PRE_NORM, final_norm="roberta.encoder.LayerNorm")

table(
    "rembert",
    top=bert_top("rembert")
    + """
    embedding_projection.*  rembert.encoder.embedding_hidden_mapping_in.*
    head.transform.*        cls.predictions.dense.*
    head.norm.*             cls.predictions.LayerNorm.*
    lm_head.*               cls.predictions.decoder.*
    """,
    layers=BERT_LAYERS,
    at="rembert.encoder.layer.{i}.",
    ignored=r"rembert\.pooler\..*|rembert\.embeddings\.position_ids",
)

table(
    "mpnet",
    top=bert_top("mpnet")
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
    + BERT_LAYERS,
    at="mpnet.encoder.layer.{i}.",
    ignored=r"mpnet\.pooler\..*|mpnet\.embeddings\.position_ids|lm_head\.decoder\.bias",
)

table(
    "electra",
    top=bert_top("electra")
    + """
    embedding_projection.*  electra.embeddings_project.*
    head.transform.*        generator_predictions.dense.*
    head.norm.*             generator_predictions.LayerNorm.*
    lm_head.*               generator_lm_head.*
    """,
    layers=BERT_LAYERS,
    at="electra.encoder.layer.{i}.",
    ignored=r"electra\.embeddings\.position_ids",
)

table(
    "distilbert",
    top=bert_top("distilbert")
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
    top=bert_top("nomic_bert")
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

table("eurobert", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

_MODERN_LAYERS = """
attention.o_proj.*      attn.Wo.*
mixer_norm.*            attn_norm.*
ffn.gate_proj.*         mlp.Wi.*                    first.half
ffn.up_proj.*           mlp.Wi.*                    second.half
ffn.down_proj.*         mlp.Wo.*
ffn_norm.*              mlp_norm.*
"""


def _modern_top(head: str) -> str:
    """Return ModernBERT's rules outside the layers. `head`: the name of the head's transform in the file."""
    return f"""
    embedding.weight        model.embeddings.tok_embeddings.weight
    embedding_norm.*        model.embeddings.norm.*
    final_norm.*            model.final_norm.*
    head.transform.*        {head}.dense.*
    head.norm.*             {head}.norm.*
    lm_head.*               decoder.*
    """


table(
    "modernbert",
    top=_modern_top("head"),
    layers="""
    attention.q_proj.*      attn.Wqkv.*                 plain.q
    attention.k_proj.*      attn.Wqkv.*                 plain.k
    attention.v_proj.*      attn.Wqkv.*                 plain.v
    """
    + _MODERN_LAYERS,
)

table(
    "modernbert-decoder",
    top=_modern_top("lm_head"),
    layers="""
    attention.q_proj.*      attn.q_proj.*
    attention.k_proj.*      attn.k_proj.*
    attention.v_proj.*      attn.v_proj.*
    """
    + _MODERN_LAYERS,
)
