"""Granite: Llama with multipliers of embedding, attention, residual stream and logits.

All four are numbers of the config that no width enters, so they survive any pruning as they are;
the attention multiplier stands in for the root of the head size.
"""

from __future__ import annotations

from qpruner_core.models.architectures.decoder import Decoder

FAMILY = Decoder(
    classes={"granite": "GraniteForCausalLM"},
    plain_biases=frozenset({"granite"}),
)
