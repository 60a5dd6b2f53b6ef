"""Experts that calibration text never reaches: what cannot be judged is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.experts import unreached_sentence
from qpruner_core.models.inputs import output_projections


@contextmanager
def counting(model: nn.Module, layout: ModelLayout) -> Iterator[dict[str, int]]:
    """Count the tokens that go through every expert while the model runs inside the context.

    Yields:
        Name of the expert -> tokens so far; empty for models without experts.
    """
    experts = {group.name for group in layout.groups if group.kind == "expert_channels"}
    outputs = {k: v for k, v in output_projections(layout).items() if k in experts}
    n_tokens = dict.fromkeys(outputs, 0)
    handles = [
        model.get_submodule(linear).register_forward_pre_hook(partial(_count, n_tokens, name))
        for name, linear in outputs.items()
    ]
    try:
        yield n_tokens
    finally:
        for handle in handles:
            handle.remove()


def warnings(n_tokens: Mapping[str, int], layout: ModelLayout, n_given: int) -> tuple[str, ...]:
    """Return a sentence on the experts that no token reached, if there are any.

    Args:
        n_tokens: As `counting` yields it; nothing is said when all are 0, for then no text went
            through the model.
        layout: Layout of the model.
        n_given: Calibration tokens.
    """
    idle = [name for name, count in n_tokens.items() if not count]
    if not idle or len(idle) == len(n_tokens):
        return ()
    return (unreached_sentence(idle, layout, n_given),)


def _count(n_tokens: dict[str, int], name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
    n_tokens[name] += args[0].numel() // args[0].shape[-1]
