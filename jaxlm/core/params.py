"""Parameter specifications: the one declaration behind initial values, sharding, weight-decay masks and `describe`.

A method returns a nested dict of `ParamSpec` from its ``params(dims)``; the arrays live in a nested dict of the same
structure. A path into either is written ``"group_0/block_0/mixer/qkv"``.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Init = Callable[[jax.Array, "ParamSpec"], jax.Array]


@dataclasses.dataclass(frozen=True)
class FanIn:
    """Normal with standard deviation ``scale / sqrt(fan in)`` (LeCun et al. 1998), the default of every matrix."""

    scale: float = 1.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        return jax.random.normal(key, spec.shape) * (self.scale / math.sqrt(spec.fan_in_size))


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal with a fixed standard deviation."""

    std: float = 0.02

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        return jax.random.normal(key, spec.shape) * self.std


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform between two numbers."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        return jax.random.uniform(key, spec.shape, jnp.float32, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Every entry the same."""

    value: float = 0.0

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        return jnp.full(spec.shape, self.value, jnp.float32)


zeros, ones = Constant(0.0), Constant(1.0)


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter array.

    Attributes:
      shape: of one layer's array, without the leading layer axis.
      axes: a logical axis name (or None) per dimension; `jaxlm.dist` maps them to mesh axes.
      init: ``(key, spec) -> float32 array of spec.shape``.
      fan_in: the dimensions a matmul with this array sums over.
      decay: whether weight decay applies (matrices yes; gains and biases no).
      active: the share of the array that a token is multiplied with (top_k / experts for the weights of experts).
      stack: number of layers stacked in front by a scanned group; 0 for a parameter that lives once.
      share: the name under which layers share the array, which then lives once; empty where each has its own.
      own: whether each layer keeps its own even where it shares what is around it (an adapter).
      uses: number of layers that read an array that is shared.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init = FanIn()
    fan_in: tuple[int, ...] = (0,)
    decay: bool = True
    active: float = 1.0
    stack: int = 0
    share: str = ""
    own: bool = False
    uses: int = 1

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"ParamSpec: axes {self.axes} do not name each dimension of shape {self.shape}")

    @property
    def fan_in_size(self) -> int:
        return math.prod(self.shape[i] for i in self.fan_in)

    @property
    def full_shape(self) -> tuple[int, ...]:
        return (self.stack, *self.shape) if self.stack else self.shape

    @property
    def full_axes(self) -> tuple[str | None, ...]:
        return ("layers", *self.axes) if self.stack else self.axes

    def value(self, key: jax.Array) -> jax.Array:
        """The initial array, float32, of `full_shape`; each stacked layer draws from its own key."""
        if self.stack:
            return jax.vmap(lambda k: self.init(k, self))(jax.random.split(key, self.stack))
        return self.init(key, self)


Tree = Mapping[str, Any]


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested dict with their paths, in insertion order."""
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, value


def map_specs(function: Callable[[str, ParamSpec], Any], specs: Tree, prefix: str = "") -> dict[str, Any]:
    """A nested dict of ``function(path, spec)`` with the structure of ``specs``."""
    out = {}
    for name, value in specs.items():
        path = f"{prefix}/{name}" if prefix else name
        out[name] = map_specs(function, value, path) if isinstance(value, Mapping) else function(path, value)
    return out


def initialize(specs: Tree, key: jax.Array) -> dict[str, Any]:
    """Initial arrays for ``specs``. A leaf's key depends on its path alone, so adding one leaves the others be."""
    return map_specs(lambda path, spec: spec.value(jax.random.fold_in(key, zlib.crc32(path.encode()))), specs)


def stacked(specs: Tree, layers: int) -> dict[str, Any]:
    """``specs`` with a leading layer axis of size ``layers``."""
    return map_specs(lambda _, spec: dataclasses.replace(spec, stack=layers), specs)


def shared(specs: Tree, name: str) -> dict[str, Any]:
    """``specs`` shared under ``name``: all arrays that are not each layer's own, nor shared under another name."""
    return map_specs(lambda _, s: s if s.own or s.share else dataclasses.replace(s, share=name), specs)


def divide(specs: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a layer has of its own, and what it shares, by name; branches that are shared whole are left out of the
    first, those that hold nothing (a norm without a gain) stay."""
    own: dict[str, Any] = {}
    common: dict[str, Any] = {}
    for name, value in specs.items():
        if isinstance(value, Mapping):
            inner, once = divide(value)
            if inner or not once:
                own[name] = inner
            for key, tree in once.items():
                common.setdefault(key, {})[name] = tree
        elif value.share:
            common.setdefault(value.share, {})[name] = value
        else:
            own[name] = value
    return own, common


def unite(specs: Tree, own: Tree, common: Mapping[str, Tree]) -> dict[str, Any]:
    """The arrays of ``specs`` from both: the inverse of `divide`, where ``common`` may hold other layers' as well."""
    out = {}
    for name, spec in specs.items():
        if isinstance(spec, Mapping):
            out[name] = unite(spec, own.get(name, {}), {key: tree.get(name, {}) for key, tree in common.items()})
        else:
            out[name] = common[spec.share][name] if spec.share else own[name]
    return out


def count(specs: Tree) -> int:
    """Number of parameters."""
    return sum(math.prod(spec.full_shape) for _, spec in flatten(specs))
