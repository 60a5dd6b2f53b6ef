"""The part of a matrix that an adapter can hold.

    scaling * b @ a = U_r S_r V_r^T,   b = U_r sqrt(S_r / scaling),   a = sqrt(S_r / scaling) V_r^T

with the r largest singular values. Directions that the matrix does not have are filled as LoRA
begins, rows of ``a`` at random and columns of ``b`` with zeros: nothing is added to the product,
and all of the adapter can learn.
"""

from __future__ import annotations

import torch

from qpruner_core.recovery.initialization import Factors

EXACT_SIDE = 512
"""Up to this smaller side all singular values are found at once; beyond, only the largest."""
_OVERSAMPLING = 10
_POWER_ITERATIONS = 4


def factors_of(
    matrix: torch.Tensor, rank: int, scaling: float, generator: torch.Generator
) -> Factors | None:
    """Return the best factors of a rank for a matrix; None where it is zero, as an adapter of two
    zeros would never learn.

    Args:
        matrix: ``(out, in)``; any floating dtype, unchanged.
        rank: >= 1; beyond the smaller side, the rest is filled.
        scaling: alpha / rank; > 0.
        generator: On the CPU, for the random parts.
    """
    wide = matrix.float()
    if not bool(wide.any()):
        return None
    u, s, vt = _largest(wide, min(rank, *wide.shape), generator)
    root = (s / scaling).sqrt()
    has = s > s[0] * torch.finfo(torch.float32).eps
    out_features, in_features = wide.shape
    # The bound of LoRA's own beginning, sqrt(6 / ((1 + 5) in)).
    filled = torch.rand(rank, in_features, generator=generator).mul_(2).sub_(1)
    a = filled.div_(in_features**0.5).to(wide.device)
    b = torch.zeros(out_features, rank, device=wide.device)
    n = len(s)
    a[:n] = torch.where(has[:, None], root[:, None] * vt, a[:n])
    b[:, :n] = torch.where(has, u * root, b[:, :n])
    return Factors(a=a, b=b)


def product(factors: Factors, scaling: float) -> torch.Tensor:
    """Return ``scaling * b @ a``, ``(out, in)`` float32.

    It is computed in float64, so that the rounded result does not depend on the order in which a
    machine adds: the weights that an adapter was trained on can be packed again anywhere.
    """
    return (factors.b.double() @ factors.a.double()).mul_(scaling).float()


def _largest(
    matrix: torch.Tensor, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``U (out, rank)``, ``S (rank,)`` descending and ``V^T (rank, in)``.

    Large matrices are projected on a random subspace that is turned towards the largest
    directions first.

    Reference: Halko, Martinsson and Tropp, "Finding structure with randomness", arXiv:0909.4061,
    algorithm 4.4. ``torch.svd_lowrank`` does the same from random numbers of the process.
    """
    n_wide = rank + _OVERSAMPLING
    if min(matrix.shape) <= max(EXACT_SIDE, n_wide):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    start = torch.randn(matrix.shape[1], n_wide, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vt[:rank]
