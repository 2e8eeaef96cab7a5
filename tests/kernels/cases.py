"""The cases that every attention back end must pass, and what they should give: a dense float64 oracle in numpy.

A case is lengths, heads, a mask and options; `arrays` draws its inputs, `oracle` computes outputs and all gradients
from the formula, `run` has an implementation do the same through `jaxlm.ops.attention`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.combine import Heads, PerHead
from jaxlm.attention.mask import (
    Anchor,
    Bidirectional,
    Blocks,
    Causal,
    Chunked,
    Diagonals,
    Dilated,
    Globals,
    Lambda,
    Prefix,
    Segments,
    Sinks,
    Strided,
    Window,
    dense,
)
from jaxlm.core.mask import Mask
from jaxlm.core.types import TileBias
from jaxlm.ops.attention import attention


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slope(TileBias):
    """A learned slope per head times the distance, bent by a second one: -a |r| + b sin(r)."""

    values: jax.Array  # [H, 2]

    def numbers(self) -> jax.Array:
        return self.values

    def at(self, numbers: tuple[jax.Array, ...], pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        far = (pos_q - pos_k).astype(jnp.float32)
        return numbers[1] * jnp.sin(far) - numbers[0] * jnp.abs(far)


class FixedSlope(Slope):
    """The same, not trainable."""

    trainable: ClassVar[bool] = False


jax.tree_util.register_dataclass(FixedSlope, data_fields=["values"], meta_fields=[])


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table. ``keys`` 0 for as many as queries; ``traced`` hides the mask's data behind a jit argument."""

    length: int
    mask: Callable[[np.random.Generator, Case], Mask] | Mask = Causal()
    keys: int = 0
    heads: int = 2
    groups: int = 2
    width: int = 32
    value_width: int = 0
    batch: int = 2
    segments: bool = False
    positions: bool = False
    bias: str = ""
    soft_cap: float = 0.0
    sinks: bool = False
    dtype: str = "float32"
    blocks: tuple[int, int] = (32, 32)
    traced: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        return self.length, self.keys or self.length


def lists(rng: np.random.Generator, case: Case, lead: tuple[int, int] = (1, 1)) -> Blocks:
    """Random block lists of 32 x 32, some entries empty."""
    rows, cols = (-(-n // 32) for n in case.sizes)
    indices = rng.integers(-1, cols, (*lead, rows, 2)).astype(np.int32)
    indices[..., 0] = np.arange(rows) % cols
    return Blocks(32, indices)


def documents(rng: np.random.Generator, length: int) -> np.ndarray:
    return np.sort(rng.integers(1, 4, length)).astype(np.int32)


CASES: dict[str, Case] = {
    "causal": Case(128),
    "causal, odd": Case(75),
    "causal, one token": Case(1),
    "causal, uneven blocks": Case(130, blocks=(64, 32)),
    "bidirectional, odd": Case(90, Bidirectional()),
    "fewer queries than keys": Case(40, keys=100),
    "more keys, not causal": Case(33, Bidirectional(), keys=70),
    "grouped": Case(96, heads=4, groups=2),
    "multi-query": Case(70, heads=4, groups=1),
    "wide values": Case(64, width=32, value_width=64),
    "width 64": Case(96, width=64),
    "width 128": Case(64, width=128),
    "width 256": Case(64, width=256),
    "window": Case(160, Window(40)),
    "window both ways": Case(130, Window(20, ahead=12)),
    "lambda": Case(160, Lambda(33, 3)),
    "sinks or window": Case(150, Sinks(4) | Window(35)),
    "strided": Case(130, Causal() & (Strided(16) | Window(8))),
    "dilated": Case(130, Dilated(5, 7)),
    "chunked": Case(130, Chunked(48)),
    "prefix": Case(100, Causal() | Prefix(37)),
    "negated": Case(100, ~Window(30) & Causal()),
    "globals": Case(120, Globals((0, 70)) | Window(12, ahead=12)),
    "static documents": Case(128, lambda rng, case: Causal() & Segments(documents(rng, case.length))),
    "anchor": Case(100, lambda rng, case: Anchor(documents(rng, case.length) - 1)),
    "block lists": Case(160, lambda rng, case: lists(rng, case)),
    "block lists, causal": Case(150, lambda rng, case: Causal() & lists(rng, case)),
    "block lists by head": Case(128, lambda rng, case: lists(rng, case, (1, 4)) & Causal(), heads=4),
    "block lists by row and head": Case(96, lambda rng, case: lists(rng, case, (2, 2)) | Window(5)),
    "lists of other blocks": Case(96, lambda rng, case: lists(rng, case), blocks=(64, 64)),
    "whole diagonals": Case(128, Causal() & Diagonals((0, 50), size=32)),
    "diagonals by head": Case(
        70, lambda rng, case: Diagonals(rng.integers(0, 60, (1, 2, 5)).astype(np.int32)) & Causal(), traced=True
    ),
    "masks by head": Case(96, PerHead((Heads(1, Causal()), Heads(3, Window(20)))), heads=4),
    "traced lists": Case(160, lambda rng, case: lists(rng, case), traced=True),
    "traced lists by head": Case(
        96, lambda rng, case: lists(rng, case, (1, 4)) & Causal(), heads=4, groups=2, traced=True
    ),
    "traced documents": Case(96, lambda rng, case: Causal() & Segments(documents(rng, case.length)), traced=True),
    "traced window": Case(96, Window(21), traced=True),
    "packed": Case(140, segments=True),
    "packed, grouped, window": Case(140, Window(30), segments=True, heads=4, groups=2),
    "packed keys of a cache": Case(40, Causal(), keys=100, segments=True),
    "positions": Case(100, Window(40), positions=True),
    "positions and documents": Case(100, Lambda(25, 2), positions=True, segments=True),
    "bias": Case(100, bias="fixed"),
    "trainable bias": Case(100, bias="trainable"),
    "trainable bias, grouped, packed": Case(100, bias="trainable", segments=True, heads=4, groups=2),
    "soft cap": Case(100, soft_cap=3.0),
    "sink logits": Case(100, Window(20), sinks=True),
    "rows without a key": Case(100, Window(50) & ~Window(10)),
    "everything": Case(
        110, Window(50), heads=4, groups=2, segments=True, positions=True, bias="trainable", soft_cap=3.0, sinks=True
    ),
    "bfloat16": Case(128, width=64, dtype="bfloat16"),
    "bfloat16, everything": Case(
        110, Window(50), heads=4, groups=2, width=64, segments=True, bias="fixed", soft_cap=3.0, dtype="bfloat16"
    ),
    "float16": Case(100, Lambda(33, 3), width=64, dtype="float16"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The inputs of a case: what gradients are taken of, and the rest."""

    arrays: dict[str, jax.Array]
    mask: Mask
    positions: tuple[np.ndarray, np.ndarray] | None
    segments: tuple[np.ndarray, np.ndarray] | None
    dout: jax.Array
    dlse: jax.Array


def draw(name: str) -> Drawn:
    case, rng = CASES[name], np.random.default_rng(zlib.crc32(name.encode()))
    (length, keys), value_width = case.sizes, case.value_width or case.width
    normal = lambda *shape, dtype=case.dtype: jnp.asarray(rng.standard_normal(shape), dtype)
    arrays = {
        "q": normal(case.batch, length, case.heads, case.width) * 1.5,
        "k": normal(case.batch, keys, case.groups, case.width),
        "v": normal(case.batch, keys, case.groups, value_width),
    }
    if case.bias:
        arrays["bias"] = jnp.asarray(rng.uniform(0.02, 0.3, (case.heads, 2)), jnp.float32)
    if case.sinks:
        arrays["sinks"] = normal(case.heads, dtype="float32")
    segments = positions = None
    if case.segments:  # documents of many lengths, padding at the end of the first row and the start of the second
        ids = np.stack([documents(rng, keys) for _ in range(case.batch)])
        ids[0, keys - keys // 5 :] = 0
        ids[1:, : keys // 6] = 0
        segments = ids[:, keys - length :], ids
    if case.positions:  # with gaps, rising along the row
        at = np.cumsum(rng.integers(1, 3, (case.batch, keys)), 1).astype(np.int32)
        positions = at[:, keys - length :], at
    mask = case.mask if isinstance(case.mask, Mask) else case.mask(rng, case)
    dout, dlse = (
        normal(case.batch, length, case.heads, value_width),
        normal(case.batch, case.heads, length, dtype="float32"),
    )
    return Drawn(arrays, mask, positions, segments, dout, dlse)


def run(name: str, drawn: Drawn, implementation: str) -> dict[str, Any]:
    """Output, log-sum-exp and gradients by an implementation."""
    case = CASES[name]

    def forward(arrays: dict[str, jax.Array], mask: Mask) -> tuple[jax.Array, jax.Array]:
        bias = None
        if case.bias:
            bias = (Slope if case.bias == "trainable" else FixedSlope)(arrays["bias"])
        return attention(
            arrays["q"],
            arrays["k"],
            arrays["v"],
            mask=mask,
            positions=drawn.positions,
            segment_ids=drawn.segments,
            bias=bias,
            soft_cap=case.soft_cap,
            sink_logits=arrays.get("sinks"),
            block_sizes=case.blocks if implementation not in ("reference", "cudnn") else None,
            implementation=implementation,
            return_lse=True,
        )

    leaves = _data(drawn.mask) if case.traced else {}

    def both(arrays: dict[str, jax.Array], leaves: Any) -> Any:
        mask = _with_data(drawn.mask, leaves)
        (out, lse), pull = jax.vjp(lambda arrays: forward(arrays, mask), arrays)
        return out, lse, pull((drawn.dout, drawn.dlse))[0]

    out, lse, grads = jax.jit(both)(drawn.arrays, leaves)
    return {"out": out, "lse": lse, **{f"d{k}": g for k, g in grads.items()}}


def _data(mask: Mask) -> dict[str, jax.Array]:
    """What may be traced in a mask's tree: its arrays, and a window's size; named by the order of the walk."""
    return {
        f"{i}.{field.name}": jnp.asarray(value)
        for i, part in enumerate(mask.masks())
        for field in dataclasses.fields(part)
        if isinstance(value := getattr(part, field.name), np.ndarray)
        or isinstance(part, Window)
        and field.name == "size"
    }


def _with_data(mask: Mask, leaves: dict[str, Any]) -> Mask:
    """A copy of the mask whose arrays are replaced by ``leaves``."""
    count = iter(range(10**6))

    def copied(part: Mask) -> Mask:
        i, new = next(count), {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            new[field.name] = copied(value) if isinstance(value, Mask) else leaves.get(f"{i}.{field.name}", value)
        return type(part)(**new)

    return copied(mask) if leaves else mask


def oracle(name: str, drawn: Drawn) -> dict[str, np.ndarray]:
    """The same from the formula, dense, in float64."""
    case = CASES[name]
    q, k, v = (np.asarray(drawn.arrays[x], np.float64) for x in "qkv")
    dout, dlse = np.asarray(drawn.dout, np.float64), np.asarray(drawn.dlse, np.float64)
    (length, keys), repeats = case.sizes, case.heads // case.groups
    pos_k = np.arange(keys)[None] if drawn.positions is None else drawn.positions[1]
    pos_q = pos_k[:, keys - length :] if drawn.positions is None else drawn.positions[0]
    seen = np.asarray(dense(drawn.mask, jnp.asarray(pos_q), jnp.asarray(pos_k)))
    if drawn.segments is not None:
        ids_q, ids_k = drawn.segments
        seen = seen & ((ids_q[:, :, None] == ids_k[:, None]) & (ids_k[:, None] != 0))[:, None]
    k, v = np.repeat(k, repeats, 2), np.repeat(v, repeats, 2)
    scale = case.width**-0.5
    logits = scale * np.einsum("blhk,bthk->bhlt", q, k)
    slope = np.full_like(logits, scale)
    if case.soft_cap:
        share = np.tanh(logits / case.soft_cap)
        logits, slope = case.soft_cap * share, scale * (1 - share**2)
    far = (pos_q[:, :, None] - pos_k[:, None])[:, None].astype(np.float64)
    if case.bias:
        a, b = (np.asarray(drawn.arrays["bias"], np.float64)[None, :, i, None, None] for i in range(2))
        logits = logits + b * np.sin(far) - a * np.abs(far)
    seen = np.broadcast_to(seen, logits.shape)
    logits = np.where(seen, logits, -np.inf)
    sinks = np.asarray(drawn.arrays["sinks"], np.float64)[None, :, None] if case.sinks else np.full((1, 1, 1), -np.inf)
    top = np.maximum(logits.max(-1), sinks)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(logits - top[..., None])
    total = weights.sum(-1) + np.exp(sinks - top)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + top
    weights = weights / np.where(total > 0, total, 1.0)[..., None]
    out = np.einsum("bhlt,bthv->blhv", weights, v)
    dlse = np.where(np.isfinite(lse), dlse, 0.0)
    dweights = np.einsum("blhv,bthv->bhlt", dout, v)
    delta = np.einsum("blhv,blhv->bhl", dout, out) - dlse
    dlogits = weights * (dweights - delta[..., None])
    dscores = dlogits * slope
    fold = lambda x: x.reshape(case.batch, keys, case.groups, repeats, -1).sum(3)
    found = {
        "out": out,
        "lse": lse,
        "dq": np.einsum("bhlt,bthk->blhk", dscores, k),
        "dk": fold(np.einsum("bhlt,blhk->bthk", dscores, q)),
        "dv": fold(np.einsum("bhlt,blhv->bthv", weights, dout)),
    }
    if case.bias:
        found["dbias"] = np.stack(
            [-(dlogits * np.abs(far)).sum((0, 2, 3)), (dlogits * np.sin(far)).sum((0, 2, 3))], axis=1
        )
        if case.bias == "fixed":
            found["dbias"] = np.zeros_like(found["dbias"])
    if case.sinks:
        share = np.exp(sinks - top) / np.where(total > 0, total, 1.0)
        found["dsinks"] = -(share * delta).sum((0, 2))
    return found


def error(got: Any, want: np.ndarray) -> float:
    """Relative error in norm; infinite where one is not finite and the other is, or both differ there."""
    got = np.asarray(got, np.float64)
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(np.isfinite(got), finite) or np.any(got[~finite] != want[~finite]):
        return np.inf
    return float(np.linalg.norm(got[finite] - want[finite]) / max(np.linalg.norm(want[finite]), 1e-3))
