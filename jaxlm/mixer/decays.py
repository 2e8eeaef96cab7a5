"""Published initial values of what decides how long a state lasts, and the checks of their ranges."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.params import ParamSpec

Range = tuple[float, float]


def check_range(name: str, values: Range) -> None:
    """Raises `ConfigError` unless 0 < low <= high."""
    require(0 < values[0] <= values[1], f"{name}: expected 0 < low <= high, got {values}")


@dataclasses.dataclass(frozen=True)
class LogOfUniform:
    """ln of a number uniform between low and high: Mamba-2's A, stored as A_log."""

    low: float
    high: float

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        return jnp.log(jax.random.uniform(key, spec.shape, jnp.float32, self.low, self.high))


@dataclasses.dataclass(frozen=True)
class StepBias:
    """What softplus makes a step size of, log-uniform between low and high and at least ``floor`` (Gu & Dao 2023)."""

    low: float
    high: float
    floor: float = 1e-4

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        log = jax.random.uniform(key, spec.shape, jnp.float32, math.log(self.low), math.log(self.high))
        step = jnp.maximum(jnp.exp(log), self.floor)
        return step + jnp.log(-jnp.expm1(-step))


@dataclasses.dataclass(frozen=True)
class Linspace:
    """Evenly spaced numbers from low to high along the last axis."""

    low: float
    high: float

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        return jnp.broadcast_to(jnp.linspace(self.low, self.high, spec.shape[-1]), spec.shape)
