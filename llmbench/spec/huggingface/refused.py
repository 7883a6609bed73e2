"""Model types that llmbench refuses, with the reason: no language models, and parts that a spec cannot describe."""

from __future__ import annotations

_BY_REASON = {
    "it reads images and has no text part": """
        aimv2_vision_model beit bit blip_vision_model chinese_clip_vision_model clip_vision_model convnext convnextv2
        cvt data2vec-vision deit dinat dinov2 dinov2_with_registers dinov3_convnext dinov3_vit donut-swin efficientnet
        focalnet hgnet_v2 hiera ijepa imagegpt levit mlcd mlcd_vision_model mobilenet_v1 mobilenet_v2 mobilevit
        mobilevitv2 pixio pixtral poolformer pvt pvt_v2 regnet resnet siglip2_vision_model siglip_vision_model
        swiftformer swin swin2sr swinv2 textnet timesformer timm_backbone timm_wrapper videomae vit vit_mae vit_msn
        vitdet vivit vjepa2
    """,
    "it compares images, sound or video with texts and writes no text": """
        align altclip aimv2 bridgetower chinese_clip clap clip clipseg clvp flava groupvit lxmert metaclip_2 siglip
        siglip2 tipsv2 videoprism vilt vision-text-dual-encoder visual_bert xclip
    """,
    "it finds or segments objects in images": """
        conditional_detr d_fine dab-detr deformable_detr deimv2 depth_anything depth_pro detr dpt edgetam efficientloftr
        eomt glpn grounding-dino lightglue lw_detr mask2former maskformer mm-grounding-dino omdet-turbo oneformer owlv2
        owlvit prompt_depth_anything rf_detr rt_detr rt_detr_v2 sam sam2 sam2_video sam3 sam3_video sam_hq sapiens2
        segformer seggpt superglue superpoint table-transformer upernet vitmatte vitpose yolos zoedepth
    """,
    "it encodes sound without a table of tokens, and a spec cannot describe its convolutions over samples": """
        audio-spectrogram-transformer data2vec-audio hubert lasr_ctc lasr_encoder parakeet_ctc parakeet_encoder sew
        sew-d unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm
    """,
    "it writes text from sound with a transducer or a conformer, which a spec cannot describe": """
        canary cohere_asr nemotron3_5_asr nemotron_asr_streaming parakeet_rnnt parakeet_tdt
    """,
    "it writes sound: besides a language model it has a codec or a vocoder, which a spec cannot describe": """
        bark csm dac dia encodec fastspeech2_conformer higgs_audio_v2 mimi moshi musicgen musicgen_melody pocket_tts
        seamless_m4t seamless_m4t_v2 speecht5 univnet vibevoice vits xcodec
    """,
    "it predicts time series": """
        autoformer informer patchtsmixer patchtst time_series_transformer timesfm timesfm2_5
    """,
    "it drafts tokens for another model, whose keys and values it reads": """
        gemma4_assistant gemma4_unified_assistant muse_glimmer_assistant
    """,
    "its layers compute on a shorter sequence than its tokens: patches, pooled tokens or latents": """
        blt funnel perceiver
    """,
    "its attention hashes tokens, and its layers are reversible": "reformer",
    "its matrix memory with exponential gates is no mixer of a spec": "xlstm",
    "it has a table of entities, and matrices that only entities use": "luke",
    "each layer works at a narrower width, with several feed-forwards": "mobilebert",
    "its matrices are grouped convolutions": "squeezebert",
    "its files have integer copies of all matrices": "ibert",
    "its layers mix an embedding of the token into the values": "neomme",
    "it writes text by diffusion": "diffusion_gemma diffusion_gemma_text",
    "its config names two other models, and a spec describes only one": """
        encoder-decoder rag speech-encoder-decoder vision-encoder-decoder
    """,
}

REFUSED = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
"""Maps a model type to the reason."""
