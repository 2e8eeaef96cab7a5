"""What the tests of both recurrences' kernels share: how a case is run, and how it is held to its float64 oracle."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BACKENDS = ("tpu", "triton")
SEGMENTS = np.asarray([[0] * 3 + [1] * 5 + [2] * 9 + [0] * 2 + [3] * 4], np.int32)  # after a document of segment 1


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a case is run on, float64 numbers that its dtypes can hold.

    Attributes:
      arrays: the recurrence's arguments by name, the state last.
      low: the names of those, and of outputs, that have the case's dtype; all others are float32.
      dtype: that dtype.
      epochs: int32 [B, L], or None for one document a row.
      dout, dfinal: cotangents of outputs and last state.
      state: whether one is given, and not None.
    """

    arrays: Mapping[str, np.ndarray]
    low: tuple[str, ...]
    dtype: str
    epochs: np.ndarray | None
    dout: np.ndarray
    dfinal: np.ndarray
    state: bool


def some_epochs(rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """About four documents a row."""
    return np.cumsum(rng.random((batch, length)) < 4 / length, 1).astype(np.int32)


def run(drawn: Drawn, package: ModuleType, backend: str, interpret: Any = True) -> dict[str, jax.Array]:
    """Outputs, last state and the gradients by all arguments, of ``package.call.scan``."""
    module = importlib.import_module(f"{package.__name__}.{backend}")
    arrays = {
        name: jnp.asarray(x, drawn.dtype if name in drawn.low else jnp.float32) for name, x in drawn.arrays.items()
    }

    def scan(arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        *given, state = (arrays[name] for name in drawn.arrays)
        options = {"backend": module, "epochs": drawn.epochs, "interpret": interpret}
        return package.call.scan(*given, state=state if drawn.state else None, **options)

    def whole(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        (out, final), pull = jax.vjp(scan, arrays)
        cotangents = jnp.asarray(drawn.dout, out.dtype), jnp.asarray(drawn.dfinal, jnp.float32)
        return {"out": out, "final": final, **pull(cotangents)[0]}

    return jax.jit(whole)(arrays) if interpret is True else whole(arrays)


def agree(drawn: Drawn, got: dict[str, jax.Array], wanted: Mapping[str, np.ndarray], bounds: dict[str, float]) -> None:
    """``bounds`` of the relative error, by dtype."""
    for name, want in wanted.items():
        if name == "state" and not drawn.state:
            continue
        dtype = drawn.dtype if name in (*drawn.low, "out") else "float32"
        assert got[name].dtype == dtype
        ours = np.asarray(got[name], np.float64)
        assert np.linalg.norm(ours - want) <= bounds[dtype] * max(np.linalg.norm(want), 1e-3), name


def gradients_are_finite_differences(oracle: Callable[..., dict[str, np.ndarray]], drawn: Drawn) -> None:
    """Of an oracle ``(drawn, **arrays) -> {"out", "final", and a gradient by each argument}``, in random directions."""
    rng, step, found = np.random.default_rng(0), 1e-6, oracle(drawn, **drawn.arrays)

    def loss(**arrays: np.ndarray) -> float:
        found = oracle(drawn, **arrays)
        return (found["out"] * drawn.dout).sum() + (found["final"] * drawn.dfinal).sum()

    for name, x in drawn.arrays.items():
        way = rng.standard_normal(x.shape)
        ahead, behind = (loss(**{**drawn.arrays, name: x + sign * step * way}) for sign in (1, -1))
        slope = (found[name] * way).sum()
        assert abs((ahead - behind) / (2 * step) - slope) <= 1e-6 * max(1.0, abs(slope)), name
