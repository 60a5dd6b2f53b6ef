"""Which Linears get an adapter, and of which rank."""

from __future__ import annotations

from qpruner_core.domain.checks import require
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.recovery import RecoverySpec


def adapter_ranks(spec: RecoverySpec, layout: ModelLayout) -> dict[str, int]:
    """Return Linear name -> rank of its adapter, of those that get one, in forward order.

    Raises:
        BadInputError: A role or a layer is asked for that the model has not, or no Linear is left
            to train.
    """
    _check_roles(spec, layout)
    beyond = [layer for layer in spec.layer_ranks if int(layer) >= layout.n_layers]
    require(
        not beyond,
        f"Ranks were given for layers {', '.join(beyond)}, but the model has the layers 0 to "
        f"{layout.n_layers - 1}",
        "Give ranks for these.",
    )
    ranks = {x.name: spec.rank_of(x.layer, x.role) for x in layout.linears}
    found = {name: rank for name, rank in ranks.items() if rank}
    require(
        bool(found),
        "Every layer was given an adapter of rank 0, so that there is nothing to train",
        "Give at least one layer a rank of 1 or more.",
    )
    return found


def _check_roles(spec: RecoverySpec, layout: ModelLayout) -> None:
    roles = list(dict.fromkeys(linear.role for linear in layout.linears))
    missing = [role for role in spec.targets if role not in roles]
    require(
        not missing,
        f"Adapters were asked for on {', '.join(missing)}, but the Linears of this model "
        f"({layout.model_type}) are {', '.join(roles)}",
        "Name some of these with --targets, or none for all.",
    )
