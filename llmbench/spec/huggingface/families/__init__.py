"""Importers of Hugging Face configs. An importer is a function that converts configs of some model types to ModelSpecs.

One file contains the importers of one lineage. A lineage is all models of one maker, or all models with one
architecture that many makers use (bart, bert, mamba). `common.py` contains the functions that several importers use.
Beside this folder, `layer_lists.py` reads what a config states about each layer, and `rotation.py` reads its RoPE.

`@family("llama", ...)` registers an importer for model types. The list is written by tools/lineages.py::

    adept_persimmon           fuyu persimmon
    ai21_jamba                jamba
    ai2_molmo                 molmo2_text
    alephalpha_kolibri        kolibri1
    allenai_olmo              flex_olmo olmo olmo2 olmo3 olmo_hybrid olmoe
    ant_bailing               bailing_hybrid bailing_moe bailing_moe_v2
    apple_openelm             openelm
    arcee                     afmoe arcee
    baai                      aquila Emu3 emu3_text_model
    baichuan                  baichuan
    baidu_ernie               ernie ernie4_5 ernie4_5_moe ernie4_5_moe_vl ernie4_5_vl_moe_text paddleocr_vl_text
    bart                      bart blenderbot blenderbot-small m2m_100 marian mbart mvp nllb-moe pegasus plbart trocr
    bart_variants             bigbird_pegasus fsmt led pegasus_x prophetnet
    bert                      albert bert camembert data2vec-text deberta deberta-v2 distilbert electra eurobert
                              megatron-bert modernbert modernbert-decoder mpnet nomic_bert rembert roberta
                              roberta-prelayernorm roformer xlm-roberta xlm-roberta-xl
    bigcode_starcoder         gpt_bigcode starcoder2
    bigscience_bloom          bloom
    bytedance_seed            seed_oss
    cohere                    cohere cohere2 cohere2_moe cohere_compass_text
    databricks                dbrx mpt
    deepseek                  deepseek deepseek_ocr2_text deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
                              unlimited_ocr_text
    eleuther_gpt              gpt_neo gpt_neox gpt_neox_japanese gptj
    google                    gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text longt5 mt5
                              recurrent_gemma switch_transformers t5 umt5 vaultgemma
    google_t5gemma            t5gemma t5gemma2
    huggingface_smollm        smollm3
    ibm_granite               bamba granite granite4_vision_text granite_docling_text granite_swa granitemoe
                              granitemoe_swa granitemoehybrid granitemoeshared
    inception_jais            btlm jais jais2
    internlm                  internlm internlm2 internlm3
    iquest_coder              iquestcoder
    jetbrains_mellum          mellum
    jetmoe                    jetmoe
    karpathy_nanochat         nanochat
    kyutai_helium             helium
    lg_exaone                 exaone exaone4 exaone_moe
    liquid_lfm                lfm2 lfm2_moe lfm3
    llama                     diffllama llama llama4_text mllama_text_model
    mamba                     mamba mamba2
    masked_lm                 bert-generation big_bird convbert esm esmc flaubert fnet gte jina_embeddings_v3 layoutlm
                              longformer mra nystromformer roc_bert tapas ultrabert xlm xlnet xmod yoso
    meituan_longcat           longcat_flash
    meta                      cwm opt xglm
    meta_muse                 muse_glimmer_text muse_spark_text
    microsoft_phi             biogpt bitnet phi phi-msft phi3 phi3_v phi4_multimodal phi4mm phimoe
    minimax                   minimax minimax_m1 minimax_m2 minimax_m3 minimax_m3_vl_text minimax_text_01 MiniMaxText01
    mistral                   ministral ministral3 mistral mistral4 mistral_large4_text mixtral voxtral_realtime_text
    moonshot_kimi             kimi_k2 kimi_linear
    naver_hyperclovax         hyperclovax
    nvidia_nemotron           deci nemotron nemotron-nas nemotron_h
    openai_gpt                gpt-sw3 gpt2 gpt_oss openai-gpt
    openbmb_minicpm           cpmant minicpm minicpm3
    orionstar_orion           orion
    poolside_laguna           laguna
    qwen                      qwen qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3
                              qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_omni_moe_text qwen3_vl_moe_text
                              qwen3_vl_text
    qwen4_exp                 qwen4_exp_text
    recursive_flint           flint
    rednote_dots              dots1 dots3_note_text
    reflection_beam           beam
    rhymes_aria               aria_moe_lm aria_text
    rwkv                      rwkv
    salesforce                codegen ctrl
    sapient_hrm               hrm_text
    skt_axk                   axk1 AXK1 axk2
    skywork                   skywork
    smalldoge                 doge
    snowflake_arctic          arctic
    speech                    moonshine speech_to_text whisper
    stability_stablelm        stablelm stablelm_epoch
    stepfun_step              step3p5
    swissai_apertus           apertus
    tencent_hunyuan           hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text hy_v3 hy_v4 youtu
    thinkingmachines_inkling  inkling2_text inkling_text
    tii_falcon                falcon falcon_h1 falcon_mamba RefinedWeb RefinedWebModel
    upstage_solar             solar_open
    xai_grok                  grok-1
    xiaomi_mimo               mimo mimo_v2_flash
    xverse                    xverse
    yi                        Yi
    zhipu_glm                 chatglm glm glm4 glm4_moe glm4_moe_lite glm4v_moe_text glm4v_text glm5_next_text
                              glm_moe_dsa glm_ocr_text
    zyphra                    zamba zamba2 zaya
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from llmbench.spec.huggingface.config import Config
from llmbench.spec.model import ModelSpec

Importer = Callable[[Config], ModelSpec]
ImporterT = TypeVar("ImporterT", bound=Importer)
FAMILIES: dict[str, Importer] = {}
"""Maps each model type to its importer."""


def family(*model_types: str) -> Callable[[ImporterT], ImporterT]:
    """Return a decorator that registers a function as the importer for these model types."""

    def register(importer: ImporterT) -> ImporterT:
        for model_type in model_types:
            assert model_type not in FAMILIES, f"{model_type} has two importers"
            FAMILIES[model_type] = importer
        return importer

    return register


for _file in sorted(Path(__file__).parent.glob("[a-z]*.py")):  # importing a file registers its importers
    importlib.import_module(f"{__name__}.{_file.stem}")
