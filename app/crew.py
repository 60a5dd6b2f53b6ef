"""Which workers one start gives a machine: one per card that is named, or several on its cores."""

from __future__ import annotations

import os

from qpruner_core.errors import BadInputError


def devices(asked: str, n_workers: int) -> tuple[str, ...]:
    """Return the device of every worker.

    Args:
        asked: ``auto``, ``cpu`` or a card; several by commas, as in ``cuda:0,cuda:1``.
        n_workers: Workers that share the cores; 1 for one on every device that was asked for.

    Raises:
        BadInputError: Fewer than one worker, or several on a card.
    """
    named = tuple(word.strip() for word in asked.split(",") if word.strip())
    if n_workers < 1:
        raise BadInputError(f"The number of workers is {n_workers}. Give 1 or more.")
    if n_workers == 1:
        return named or ("auto",)
    if named not in ((), ("auto",), ("cpu",)):
        raise BadInputError(
            f"{n_workers} workers were asked for on {asked}, but only the cores are shared by "
            f"several. Name every card once, as in --device cuda:0,cuda:1, or leave the device "
            f"out."
        )
    return ("cpu", *(f"cpu:{seat}" for seat in range(1, n_workers)))


def threads(n_workers: int) -> dict[str, str]:
    """Return the environment that gives each of several workers its part of the cores; what is set
    already stays.
    """
    if n_workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // n_workers))}
