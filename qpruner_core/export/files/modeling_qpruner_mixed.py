"""Named in ``auto_map`` of a mixed-precision checkpoint: the classes of `modeling_qpruner` once
the reader of packed weights is registered with transformers.
"""

from .modeling_qpruner import (
    QPrunerLlamaForCausalLM,
    QPrunerMistralForCausalLM,
    QPrunerQwen2ForCausalLM,
    QPrunerQwen3ForCausalLM,
)
from .quantizer_qpruner import METHOD

__all__ = [
    "METHOD",
    "QPrunerLlamaForCausalLM",
    "QPrunerMistralForCausalLM",
    "QPrunerQwen2ForCausalLM",
    "QPrunerQwen3ForCausalLM",
]
