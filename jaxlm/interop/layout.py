"""How one of our arrays lies in stored tensors: which part of it, which axes where. Read either way.

A fused query/key/value weight (D, G, R + 2, K) may be three tensors (H K, D), one tensor with the three after one
another, or one with the heads interleaved. Each is a few `Piece`s; loading and saving are the same description:

    Piece("D G R K", "(G R K) D", np.s_[..., :-2, :])    # the query part, output features first, as PyTorch stores it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Layout = tuple["Place", ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of our array, and the order and grouping of its axes in the stored tensor.

    Attributes:
      ours: the axes of the part, separated by spaces; empty for any axes in any number, left as they are.
      theirs: the same axes as stored; those in parentheses are merged.
      part: the index that selects the part from our array.
    """

    ours: str = ""
    theirs: str = ""
    part: Any = ...

    def view(self, array: np.ndarray) -> np.ndarray:
        """The part of ``array`` with its axes in stored order, not yet merged; a view."""
        found = array[self.part]
        if not self.ours:
            return found
        axes, order = self.ours.split(), self.theirs.replace("(", " ").replace(")", " ").split()
        if found.ndim != len(axes) or sorted(axes) != sorted(order):
            raise ValueError(f"layout {self.ours!r} -> {self.theirs!r} does not fit an array of shape {found.shape}")
        return found.transpose([axes.index(axis) for axis in order])

    def shape(self, view_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The stored shape, of a view's shape."""
        if not self.ours:
            return view_shape
        sizes, at, merging = iter(view_shape), [], False
        for token in self.theirs.replace("(", " ( ").replace(")", " ) ").split():
            if token == "(":
                merging = True
                at.append(1)
            elif token == ")":
                merging = False
            elif merging:
                at[-1] *= next(sizes)
            else:
                at.append(next(sizes))
        return tuple(at)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a stored tensor that several of our arrays share: of each of ``groups`` runs of ``size`` rows, those
    from ``start`` up to ``stop``."""

    groups: int
    size: int
    start: int
    stop: int

    def of(self, tensor: np.ndarray) -> np.ndarray:
        """A view of those rows, [groups, stop - start, ...]."""
        return tensor.reshape(self.groups, self.size, *tensor.shape[1:])[:, self.start : self.stop]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one stored tensor comes from: pieces of our array after one another along ``axis``.

    ``name`` may hold ``{layer}``, or ``{next}`` for the number after that, and what `Family.marks` says; ``{expert}``
    for one tensor per entry of our array's first axis, ``{head}`` for one per entry of all its axes but the last. With
    ``rows``, the pieces are those rows of the tensor, and other arrays of ours hold the others.
    """

    name: str
    pieces: tuple[Piece, ...] = (Piece(),)
    axis: int = 0
    rows: Rows | None = None

    @property
    def as_is(self) -> bool:
        """The stored tensor is our array."""
        return self.pieces == (Piece(),) and self.rows is None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The stored shape for an array of ours of this shape."""
        empty = np.broadcast_to(np.zeros((), np.int8), ours)
        shapes = [list(piece.shape(piece.view(empty).shape)) for piece in self.pieces]
        shapes[0][self.axis] = sum(shape[self.axis] for shape in shapes) if shapes[0] else 0
        if self.rows is not None:
            shapes[0][0] = self.rows.groups * self.rows.size
        return tuple(shapes[0])

    def fill(self, array: np.ndarray, tensor: np.ndarray) -> None:
        """Writes a stored tensor into its parts of our array."""
        if self.rows is not None:
            tensor = self.rows.of(tensor).reshape(-1, *tensor.shape[1:])
        start = 0
        for piece in self.pieces:
            view = piece.view(array)
            size = piece.shape(view.shape)[self.axis] if view.ndim else 0
            cut = tensor if len(self.pieces) == 1 else tensor.take(range(start, start + size), self.axis)
            view[...] = cut.reshape(view.shape)
            start += size

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The stored tensor of our array (those of its rows that are ours), contiguous."""
        views = [piece.view(array) for piece in self.pieces]
        parts = [view.reshape(piece.shape(view.shape)) for piece, view in zip(self.pieces, views, strict=True)]
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis))


def resolve(layout: Layout, numbers: Mapping[str, int], shape: tuple[int, ...]) -> Layout:
    """``layout`` with a layer's ``numbers`` filled in; a `Place` per expert or head where names ask for it."""
    out: list[Place] = []
    for stored in layout:
        name = stored.name
        for mark, number in numbers.items():
            name = name.replace(f"{{{mark}}}", str(number))
        each, axes = ("{expert}", shape[:1]) if "{expert}" in name else ("{head}", shape[:-1])
        if each not in name:
            out.append(dataclasses.replace(stored, name=name))
            continue
        for n, index in enumerate(np.ndindex(*axes)):
            pieces = tuple(
                dataclasses.replace(p, part=index + (p.part if isinstance(p.part, tuple) else (p.part,)))
                for p in stored.pieces
            )
            out.append(Place(name.replace(each, str(n)), pieces, stored.axis, stored.rows))
    return tuple(out)


def plain(name: str) -> Layout:
    """Place as it is."""
    return (Place(name),)


def piecewise(name: str, *pieces: Piece, axis: int = 0) -> Layout:
    """One tensor of pieces after one another."""
    return (Place(name, pieces, axis),)


def shared(
    name: str, parts: Sequence[tuple[str, int, Piece | tuple[Piece, ...]]], groups: int = 1
) -> dict[str, Layout]:
    """One tensor whose rows several of our arrays share, in each of ``groups`` runs: our path, how many rows of a run,
    and the piece or pieces that they are."""
    size, start, out = sum(rows for _, rows, _ in parts), 0, {}
    for ours, rows, pieces in parts:
        whole = pieces if isinstance(pieces, tuple) else (pieces,)
        out[ours] = (Place(name, whole, rows=Rows(groups, size, start, start + rows)),)
        start += rows
    return out


def only(mixer: str, tensors: Mapping[str, Layout]) -> dict[str, Layout]:
    """The tensors of those layers alone whose mixer is registered by that name."""
    return {f"{mixer}:{path}": layout for path, layout in tensors.items()}


def transposed(name: str) -> Layout:
    """A matrix of ours (in, out) stored as (out, in), as PyTorch's linear layers are."""
    return piecewise(name, Piece("D F", "F D"))


def norm(ours: str, theirs: str) -> dict[str, Layout]:
    """Scale and bias of a normalisation."""
    return {f"{ours}/scale": plain(f"{theirs}.weight"), f"{ours}/bias": plain(f"{theirs}.bias")}


def mlp(up: str, down: str, matrix: Callable[[str], Layout] = transposed) -> dict[str, Layout]:
    """A two-layer perceptron; ``matrix`` is `plain` where weights are stored (in, out), as GPT-2's are."""
    return {
        "ffn/in": matrix(f"{up}.weight"),
        "ffn/in_bias": plain(f"{up}.bias"),
        "ffn/out": matrix(f"{down}.weight"),
        "ffn/out_bias": plain(f"{down}.bias"),
    }


def glu(gate: str, up: str, down: str, ours: str = "ffn") -> dict[str, Layout]:
    """A gated unit of three linear layers."""

    def pair(kind: str, axes: str, stored: str) -> Layout:
        return tuple(
            Place(f"{name}.{kind}", (Piece(axes, stored, np.s_[..., i]),)) for i, name in enumerate((gate, up))
        )

    return {
        f"{ours}/in": pair("weight", "D F", "F D"),
        f"{ours}/in_bias": pair("bias", "F", "F"),
        f"{ours}/out": transposed(f"{down}.weight"),
        f"{ours}/out_bias": plain(f"{down}.bias"),
    }


QUERIES, KEYS, VALUES = np.s_[..., :-2, :], np.s_[..., -2, :], np.s_[..., -1, :]


def attention(q: str, k: str, v: str, out: str) -> dict[str, Layout]:
    """Four linear layers."""
    parts = ((q, "G R K", QUERIES), (k, "G K", KEYS), (v, "G K", VALUES))
    return {
        "mixer/qkv": tuple(Place(f"{n}.weight", (Piece(f"D {axes}", f"({axes}) D", i),)) for n, axes, i in parts),
        "mixer/qkv_bias": tuple(Place(f"{n}.bias", (Piece(axes, f"({axes})", i),)) for n, axes, i in parts),
        **output(out),
    }


def output(name: str, stored: str = "D (G R K)") -> dict[str, Layout]:
    """The output projection of attention."""
    return {"mixer/out": piecewise(f"{name}.weight", Piece("G R K D", stored)), "mixer/out_bias": plain(f"{name}.bias")}


def attention_in_turn(qkv: str, out: str, transpose: bool = True) -> dict[str, Layout]:
    """One fused layer: all queries, then all keys, then all values."""

    def parts(dims: str) -> tuple[Piece, ...]:
        def piece(axes: str, part: Any) -> Piece:
            if not dims:
                return Piece(axes, f"({axes})", part)
            return Piece(f"D {axes}", f"({axes}) D" if transpose else f"D ({axes})", part)

        return piece("G R K", QUERIES), piece("G K", KEYS), piece("G K", VALUES)

    return {
        "mixer/qkv": piecewise(f"{qkv}.weight", *parts("D"), axis=0 if transpose else 1),
        "mixer/qkv_bias": piecewise(f"{qkv}.bias", *parts("")),
        **output(out, "D (G R K)" if transpose else "(G R K) D"),
    }


def attention_by_group(qkv: str, out: str) -> dict[str, Layout]:
    """One fused layer: for each key/value head its queries, its key, its value (which is our own order)."""
    return {
        "mixer/qkv": piecewise(f"{qkv}.weight", Piece("D G P K", "(G P K) D")),
        "mixer/qkv_bias": piecewise(f"{qkv}.bias", Piece("G P K", "(G P K)")),
        **output(out),
    }


def ends(embed: str, final_norm: str, head: str) -> dict[str, Layout]:
    """Embedding, final norm and head."""
    return {
        "embed/table": plain(f"{embed}.weight"),
        **norm("final_norm", final_norm),
        "head/kernel": transposed(f"{head}.weight"),
        "head/bias": plain(f"{head}.bias"),
    }


def names(tensors: Mapping[str, Layout]) -> set[str]:
    """The stored names of a table, as templates."""
    return {stored.name for layout in tensors.values() for stored in layout}
