"""Deciphering: which letter of the plain text a model has in mind where it reads a symbol that it has never seen.

Paper: Huang et al. 2023, Lexinvariant Language Models. A lexinvariant model reads a text under a cipher of its own. A
linear map takes its hidden states to the embeddings of a usual model, trained on plain text; the nearest of these is
the letter. The map is fitted on rows under some tables and read on other rows under other tables, so what it finds is
in the hidden states and not in a table. Formula, with H [N, D] centred hidden states and E [N, W] the embeddings of
their letters, centred likewise:

    W = (H^T H + ridge N s I)^-1 H^T E,    s the mean variance of H;    letter(h) = argmin_v |h W + mean - e_v|

Claimed: accuracy grows with what of the row has been read. Shown by: experiments.tokenization (lexinvariance).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import require

ROWS = 2**14  # hidden states that are compared with all embeddings at once


@dataclasses.dataclass(frozen=True)
class Decipherer:
    """A map from hidden states to letters.

    Attributes:
      kernel: float64 [D, W]. offset: float64 [W].
      embeddings: float64 [V, W], of the usual model.
    """

    kernel: NDArray[np.float64]
    offset: NDArray[np.float64]
    embeddings: NDArray[np.float64]

    @classmethod
    def fit(cls, hidden: ArrayLike, letters: ArrayLike, embeddings: ArrayLike, ridge: float = 1e-3) -> Decipherer:
        """The least-squares map of hidden states [N, D] to the embeddings [V, W] of their letters, int [N].

        Raises `ConfigError` for shapes that do not belong together, a letter that is none, or a ridge below 0.
        """
        h, e, ids = np.asarray(hidden, np.float64), np.asarray(embeddings, np.float64), np.asarray(letters)
        require(
            h.ndim == 2 and e.ndim == 2, f"fit: expected [N, D] and [V, W], got {list(h.shape)} and {list(e.shape)}"
        )
        require(ids.shape == h.shape[:1] and ids.size, f"fit: {list(ids.shape)} letters for {len(h)} hidden states")
        odd = ids[(ids < 0) | (ids >= len(e))]
        require(not odd.size, f"fit: letter {odd[:1]} is not one of 0..{len(e) - 1}")
        require(ridge >= 0, f"fit: expected a ridge >= 0, got {ridge}")
        mean, target = h.mean(0), e[ids].mean(0)
        centred = h - mean
        gram = centred.T @ centred
        gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        kernel = np.linalg.lstsq(gram, centred.T @ (e[ids] - target), rcond=None)[0]
        return cls(kernel, target - mean @ kernel, e)

    def __call__(self, hidden: ArrayLike) -> NDArray[np.int64]:
        """The nearest embedding's letter of hidden states [..., D], int64 [...]; of equally near ones the first."""
        h = np.asarray(hidden, np.float64)
        flat = h.reshape(-1, h.shape[-1])
        half = 0.5 * np.sum(self.embeddings**2, 1)
        parts = (flat[i : i + ROWS] @ self.kernel + self.offset for i in range(0, len(flat), ROWS))
        found = [np.argmax(part @ self.embeddings.T - half, 1) for part in parts]
        return np.concatenate([np.zeros(0, np.int64), *found]).reshape(h.shape[:-1])


def accuracy(found: ArrayLike, letters: ArrayLike, start: int, stop: int) -> float:
    """The share of letters [B, L] that were found, at positions from ``start`` up to ``stop`` of each row."""
    found, letters = np.asarray(found), np.asarray(letters)
    require(
        found.shape == letters.shape and found.ndim == 2,
        f"accuracy: expected two [B, L], got {list(found.shape)} and {list(letters.shape)}",
    )
    require(0 <= start < stop <= found.shape[1], f"accuracy: {start}..{stop} is not within {found.shape[1]} positions")
    return float((found == letters)[:, start:stop].mean())
