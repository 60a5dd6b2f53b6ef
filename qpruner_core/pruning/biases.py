"""Which Linears get a bias for what the units removed from their inputs gave; knows no values.

The rule is FLAP's (An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language
Models", arXiv:2312.11983, section 3.3): every output projection that loses inputs. Where a model
would open in its stock class without biases, and the family's config can ask for biases only for
all Linears of a block, all of them get one, so that the class still opens it; those that lose no
inputs get zeros.
"""

from __future__ import annotations

from dataclasses import replace

from qpruner_core.domain.layout import ModelLayout, Renaming, opens_plainly
from qpruner_core.domain.plan import PruningPlan


def compensated(layout: ModelLayout, plan: PruningPlan) -> tuple[str, ...]:
    """Return the Linears that stay and lose inputs under a plan, in forward order."""
    losing = {
        part.tensor.rpartition(".")[0]
        for group in layout.groups
        for part in group.slices
        if part.is_input and len(plan.kept.get(group.name, range(group.n_units))) < group.n_units
    }
    new_name = Renaming(layout, plan)
    return tuple(x.name for x in layout.linears if x.name in losing and new_name(x.name))


def with_biases(layout: ModelLayout, plan: PruningPlan) -> PruningPlan:
    """Return the plan with its biases named, in forward order; any it had are replaced.

    Args:
        layout: The model before pruning.
        plan: Units and layers that stay.
    """
    bare = replace(plan, biases=())
    names = compensated(layout, bare)
    found = replace(bare, biases=names)
    if not (names and layout.plain_biases and opens_plainly(layout.pruned(bare))):
        return found
    if opens_plainly(layout.pruned(found)):
        return found
    new_name = Renaming(layout, bare)
    blocks = {linear.block for linear in layout.linears if linear.name in names}
    whole = (x.name for x in layout.linears if x.block in blocks and new_name(x.name))
    return replace(bare, biases=tuple(whole))


def bias_remarks(layout: ModelLayout, plan: PruningPlan) -> tuple[str, ...]:
    """Return a sentence where the biases of a plan are all that keeps the stock class away."""
    if not plan.biases or opens_plainly(layout.pruned(plan)):
        return ()
    if not opens_plainly(layout.pruned(replace(plan, biases=()))):
        return ()
    return (
        f"A stock {layout.model_type} config cannot ask for the biases of the compensation, so "
        "the exported model opens with the small modeling file in its folder (trust remote "
        "code); without compensation its uniform widths would need none.",
    )
