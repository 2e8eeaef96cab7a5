"""HiPPO-LegS, the matrix whose state holds the past as coefficients of Legendre polynomials (Gu et al. 2020).

    A_nk = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 above        B_n = sqrt(2n+1)

It is a normal matrix less a product of rank 1: with P_n = sqrt(n + 1/2), A + P P^T = -I/2 + S, S skew (Gu et al. 2022).
All of it is float64 numpy, made once before anything is traced.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Legs(NamedTuple):
    """HiPPO-LegS as A = V (diag(eigenvalues) - P P^*) V^*, one of each pair of conjugate eigenvalues.

    Eigenvectors have an arbitrary phase, so of p and b only the moduli and conj(p) b mean something.

    Attributes:
      eigenvalues: complex128 [N / 2], real parts -1/2, imaginary parts < 0 and ascending.
      p, b: complex128 [N / 2], V^* P and V^* B.
      basis: complex128 [N, N / 2], columns of V.
    """

    eigenvalues: np.ndarray
    p: np.ndarray
    b: np.ndarray
    basis: np.ndarray


def legs_matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [N, N], B [N] and P [N] of HiPPO-LegS."""
    n = np.arange(size, dtype=np.float64)
    root = np.sqrt(2 * n + 1)
    a = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)
    return a, root, np.sqrt(n + 0.5)


def legs(size: int) -> Legs:
    """HiPPO-LegS of an even size N, diagonalised."""
    a, b, p = legs_matrices(size)
    normal = a + np.outer(p, p)
    skew = normal + 0.5 * np.eye(size)
    frequencies, basis = np.linalg.eigh(-1j * skew)  # skew = i (Hermitian); ascending, in pairs +-w
    half = basis[:, : size // 2]
    return Legs(-0.5 + 1j * frequencies[: size // 2], half.conj().T @ p, half.conj().T @ b, half)
