"""Weight names of Whisper and Speech2Text.

The sizes of files need them, and the decoder of Whisper alone: no PyTorch model reads sound.
"""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.bart import BART_AT, BART_LAYERS, UNUSED_CROSS_ATTENTION
from llmbench.spec.weights.families.common import in_encoder
from llmbench.spec.weights.families.meta import FAIRSEQ_LAYERS

_TOP = """
embedding.weight                    model.decoder.embed_tokens.weight
position_embedding.weight           model.decoder.embed_positions.weight
final_norm.*                        model.decoder.layer_norm.*
encoder.position_embedding.weight   model.encoder.embed_positions.weight
encoder.final_norm.*                model.encoder.layer_norm.*
""" + in_encoder(FAIRSEQ_LAYERS, "model.encoder.layers.{i}.")

_WHISPER = """
lm_head.*                           proj_out.*
encoder.conv1.*                     model.encoder.conv1.*
encoder.conv2.*                     model.encoder.conv2.*
"""

_SPEECH_TO_TEXT = """
lm_head.*                           lm_head.*
encoder.conv.0.*                    model.encoder.conv.conv_layers.0.*
encoder.conv.1.*                    model.encoder.conv.conv_layers.1.*
encoder.conv.2.*                    model.encoder.conv.conv_layers.2.*
"""

table("whisper", top=_TOP + _WHISPER, layers=BART_LAYERS, at=BART_AT, ignored=UNUSED_CROSS_ATTENTION)
table("speech_to_text", top=_TOP + _SPEECH_TO_TEXT, layers=BART_LAYERS, at=BART_AT)
