"""Evaluate: how well a model answers and what it costs, always the same tokens in the same
    batches.

The rule of this room: text and items are tokenised and batched once per run, so that every trial
sees the same numbers and pays for the forward pass alone; no logits are kept beyond one sample.
"""

from qpruner_core.evaluation.suite import Asked, Measured, Suite, build_suite

__all__ = ["Asked", "Measured", "Suite", "build_suite"]
