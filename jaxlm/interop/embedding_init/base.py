"""What a method is given, what it returns, and the formulae that several methods share.

A method fills a target matrix [T, D] from a source matrix [V, D]: the rows of tokens that both vocabularies have are
copied bit for bit, the others are the method's. It serves any matrix with a row per token: input embeddings, output
embeddings, or the biases of the logits as [V, 1]. All sums are float64, whatever the checkpoint's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.config import Spec, require

CHUNK = 512  # new tokens whose similarities to all others are held at once

Rows = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What new rows are made from.

    Attributes:
      source: [V, D], floats.
      overlap: int [T], of each target token the source token that means the same, -1 for new tokens.
      pieces: of each target token its source tokens in order; those of new tokens are looked at, and only where
        `EmbeddingInit.needs_pieces`. Empty where it has none (a special token).
      auxiliary_target: floats [T, A], a vector of each target token in a space of no model; zeros where unknown.
      auxiliary_source: floats [V, A], of each source token in the same space.
      regular: bool [V], source tokens whose rows are worth learning from (not special, not padding); None for all.
    """

    source: NDArray
    overlap: Ids
    pieces: Sequence[Sequence[int]] = ()
    auxiliary_target: NDArray | None = None
    auxiliary_source: NDArray | None = None
    regular: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        rows, size = len(self.source), len(self.overlap)
        require(self.source.ndim == 2, f"source embeddings: expected shape [V, D], got {list(self.source.shape)}")
        most = max(
            (int(ids.max()) for ids in (np.asarray(p) for p in (self.overlap, *self.pieces)) if ids.size), default=-1
        )
        require(most < rows, f"source token {most} is beyond the {rows} rows of the source embeddings")
        for name, array, count in (
            ("auxiliary_target", self.auxiliary_target, size),
            ("auxiliary_source", self.auxiliary_source, rows),
        ):
            require(
                array is None or (array.ndim == 2 and len(array) == count),
                f"{name}: expected a vector for each of {count} tokens, got shape {list(getattr(array, 'shape', ()))}",
            )
        two = self.auxiliary_target, self.auxiliary_source
        require(
            two[0] is None or two[1] is None or two[0].shape[1] == two[1].shape[1],
            "auxiliary vectors of source and target should be of one space; their widths differ",
        )

    @property
    def new(self) -> Ids:
        """The target tokens without a counterpart."""
        return np.flatnonzero(self.overlap < 0)

    @property
    def usual(self) -> Ids:
        """The source tokens to learn from."""
        return np.arange(len(self.source)) if self.regular is None else np.flatnonzero(self.regular)

    def mean(self) -> Rows:
        """The mean of the rows to learn from, [D]."""
        return self.source[self.usual].astype(np.float64).mean(0)

    def deviation(self) -> Rows:
        """Their population standard deviation in each dimension, [D]."""
        return self.source[self.usual].astype(np.float64).std(0)


@dataclasses.dataclass(frozen=True)
class EmbeddingInit(Spec):
    """Base of the methods: a frozen object that defines `rows`.

    Class attributes:
      paper: where it is from.
      needs_pieces: it reads `Material.pieces`.
      needs_target, needs_source: it reads the auxiliary vectors of that side.
    """

    paper: ClassVar[str]
    needs_pieces: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    needs_source: ClassVar[bool] = False

    def __call__(self, material: Material, rng: np.random.Generator) -> NDArray:
        """The target matrix [T, D], in the source's dtype. Raises `ConfigError` for material that it lacks."""
        for name in ("target", "source"):
            require(
                not getattr(self, f"needs_{name}") or getattr(material, f"auxiliary_{name}") is not None,
                f"{type(self).__name__} needs auxiliary vectors of the {name} tokens; give texts to make them from, or "
                "a file of vectors",
            )
        require(len(material.usual), "no source token has an embedding to learn from")
        out = np.empty((len(material.overlap), material.source.shape[1]), material.source.dtype)
        old, new = material.overlap >= 0, material.new
        out[old] = material.source[material.overlap[old]]
        if len(new):
            out[new] = self.rows(material, new, rng).astype(out.dtype)
        return out

    def rows(self, material: Material, new: Ids, rng: np.random.Generator) -> Rows:
        """The rows [N, D] of the target tokens ``new`` [N]."""
        raise NotImplementedError


def means_of_pieces(material: Material, new: Ids) -> Rows:
    """The average of the source rows of each token's pieces; the mean of all rows for a token without pieces."""
    fallback = material.mean()
    out = np.empty((len(new), material.source.shape[1]))
    for row, token in zip(out, new, strict=True):
        ids = np.asarray(material.pieces[token], np.int64)
        row[:] = material.source[ids].astype(np.float64).mean(0) if len(ids) else fallback
    return out


def cosine(one: NDArray, two: NDArray) -> Rows:
    """Cosine similarity [N, M] of vectors [N, A] and [M, A]; NaN where either is zero, whose direction is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (
            x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one.astype(np.float64), two.astype(np.float64))
        )
    return one @ two.T


def sparsemax(z: NDArray) -> Rows:
    """The point of the simplex nearest to each row of z [N, M] (Martins and Astudillo 2016): many weights are 0.

    With z sorted downward and k the largest number for which 1 + k z_k > z_1 + .. + z_k, the weights are
    max(z - tau, 0) for tau = (z_1 + .. + z_k - 1) / k. Adding a number to a row changes nothing.
    """
    down = -np.sort(-np.asarray(z, np.float64), axis=1)
    sums, count = np.cumsum(down, 1), np.arange(1, down.shape[1] + 1)
    k = (1 + count * down > sums).sum(1)
    tau = (np.take_along_axis(sums, k[:, None] - 1, 1) - 1) / k[:, None]
    return np.maximum(z - tau, 0.0)


def nearest_softmax(similarity: NDArray, count: int, temperature: float) -> Rows:
    """softmax(similarity / temperature) over the ``count`` largest of each row [N, M], 0 elsewhere.

    Of equal ones at the border any may be taken, the same in every run.
    """
    count = min(count, similarity.shape[1])
    kept = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    best = np.take_along_axis(similarity, kept, 1) / temperature
    best = np.exp(best - best.max(1, keepdims=True))
    out = np.zeros(similarity.shape)
    np.put_along_axis(out, kept, best / best.sum(1, keepdims=True), 1)
    return out


def average_by_similarity(
    vectors: NDArray, anchors: NDArray, values: NDArray, fallback: NDArray, weigh, what: str
) -> Rows:
    """Weighted averages [N, D] of ``values`` [M, D] of anchors, by how similar their vectors are.

    Args:
      vectors: [N, A] of the new tokens; the row of a zero vector is ``fallback`` [D].
      anchors: [M, A]; those that are zero are left out.
      weigh: cosines [n, m] -> weights [n, m].
      what: the anchors are, for the error.

    Raises `ConfigError` if no anchor has a vector.
    """
    known = np.flatnonzero(np.any(anchors != 0, axis=1))
    require(len(known), f"no auxiliary vector: of {len(anchors)} {what} none has one that is not zero")
    anchors, values = anchors[known], values[known].astype(np.float64)
    out = np.broadcast_to(fallback, (len(vectors), values.shape[1])).copy()
    usable = np.flatnonzero(np.any(vectors != 0, axis=1))
    for start in range(0, len(usable), CHUNK):
        at = usable[start : start + CHUNK]
        out[at] = weigh(cosine(vectors[at], anchors)) @ values
    return out
