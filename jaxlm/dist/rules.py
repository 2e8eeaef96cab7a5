"""Logical axis rules: which mesh axes a named dimension is split over.

Parameters and activations name their dimensions ("embed", "heads", "mlp", "batch" ...); `RULES` says where each goes. A
dimension that its mesh axes do not divide stays whole, so any model runs on any mesh.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.params import ParamSpec, map_specs

Rules = Mapping[str, str | tuple[str, ...] | None]
Axes = tuple[str | None, ...]

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": "context",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "expert": "tensor",
    "vocab": "tensor",
    "layers": None,
}

_ACTIVE: contextvars.ContextVar[tuple[jax.sharding.Mesh, Rules] | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh | None, rules: Rules = RULES) -> Iterator[None]:
    """Within the block, `constrain` pins activations to ``mesh``; with None it does nothing."""
    token = _ACTIVE.set(None if mesh is None else (mesh, rules))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def sharding(
    mesh: jax.sharding.Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], rules: Rules = RULES
) -> NamedSharding:
    """The placement of an array whose dimensions are named ``axes``.

    A mesh axis splits one dimension of an array, the first that asks for it and is divided by it: of an expert's hidden
    width and the number of experts, that number.
    Written as compiled functions return it, without mesh axes of size 1 or trailing Nones: what comes out of a step
    then equals what goes in, and one compile serves.
    """
    parts: list[Any] = []
    used: set[str] = set()
    for name, size in zip(axes, shape, strict=True):
        target = rules.get(name) if name is not None else None
        wanted = (target,) if isinstance(target, str) else target or ()
        names = [n for n in wanted if mesh.shape[n] > 1 and n not in used]
        fits = size % math.prod(mesh.shape[n] for n in names) == 0
        parts.append((names[0] if len(names) == 1 else tuple(names)) if names and fits else None)
        used.update(names if fits else ())
    while parts and parts[-1] is None:
        parts.pop()
    return NamedSharding(mesh, PartitionSpec(*parts))


def param_shardings(mesh: jax.sharding.Mesh, specs: Mapping[str, Any], rules: Rules = RULES) -> dict[str, Any]:
    """A `NamedSharding` for every `ParamSpec` of a nested dict."""

    def place(_: str, spec: ParamSpec) -> NamedSharding:
        return sharding(mesh, spec.full_axes, spec.full_shape, rules)

    return map_specs(place, specs)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pins an activation to its place on the mesh in use; the identity without one."""
    active = _ACTIVE.get()
    if active is None:
        return x
    mesh, rules = active
    return jax.lax.with_sharding_constraint(x, sharding(mesh, axes, x.shape, rules))


def is_active() -> bool:
    """Whether a mesh is in use."""
    return _ACTIVE.get() is not None


def active_mesh() -> jax.sharding.Mesh | None:
    """The mesh in use."""
    active = _ACTIVE.get()
    return None if active is None else active[0]


def divides(name: str, size: int) -> bool:
    """Whether the axes that ``name`` goes to divide a dimension of ``size`` on the mesh in use; False without one."""
    active = _ACTIVE.get()
    return active is not None and bool(sharding(active[0], (name,), (size,), active[1]).spec)


def per_device(
    function: Callable[..., jax.Array], arguments: tuple[Any, ...], axes: tuple[Axes, ...], out: Axes
) -> jax.Array:
    """``function(*arguments)`` with each device of the mesh in use computing its own piece; without one, as it is.

    Args:
      function: of as many arguments; it returns an array, and communicates with nobody.
      arguments: arrays, or trees of arrays whose first dimensions are alike.
      axes: for each argument the logical axes of its first dimensions; the rest of it every device has whole.
      out: the logical axes of the result's dimensions, each split as it is in the first argument that has it. Devices
        that have the same piece compute the same.
    """
    active = _ACTIVE.get()
    if active is None:
        return function(*arguments)
    mesh, rules = active
    split: dict[str, Any] = {"": None}
    specs = []
    for argument, names in zip(arguments, axes, strict=True):
        leading = jax.tree.leaves(argument)[0].shape[: len(names)]
        spec = sharding(mesh, names, leading, rules).spec
        specs.append(spec)
        for name, part in itertools.zip_longest(names, spec):
            split.setdefault(name or "", part)
    result = PartitionSpec(*(split[name or ""] for name in out))
    # Not checked that replicas are alike: the check does not know of loops with hand-written gradients.
    run: Any = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=result,
        check_vma=False,
        axis_names={n for n in mesh.axis_names if mesh.shape[n] > 1},
    )
    return run(*arguments)
