"""The torch-free half of *load*: what config and safetensors headers say, without reading a
weight.

The browser side asks here, so nothing in this package imports torch, and `huggingface_hub` is
imported only when a hub id is asked about.
"""

from qpruner_core.inspection.cards import inspect_model, model_folder
from qpruner_core.inspection.fits import Fit, Gpu, gpu_fits
from qpruner_core.inspection.folders import demo_folder, read_headers
from qpruner_core.inspection.headers import TensorHeader
from qpruner_core.inspection.instructions import InstructionCard, examine, is_instruction_file
from qpruner_core.inspection.sources import check_training
from qpruner_core.inspection.texts import TextCard, examine_text

__all__ = [
    "Fit",
    "Gpu",
    "InstructionCard",
    "TensorHeader",
    "TextCard",
    "check_training",
    "demo_folder",
    "examine",
    "examine_text",
    "gpu_fits",
    "inspect_model",
    "is_instruction_file",
    "model_folder",
    "read_headers",
]
