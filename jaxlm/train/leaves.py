"""A training state as named arrays: ``{"params/embed/table": array}``.

Checkpoints store arrays by path, so that what can be restored does not depend on the classes of the containers (an
optimizer's named tuples change with its library), and one subtree can be read without the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.core.config import require


def flatten(tree: Any, kinds: tuple[type, ...] = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) -> dict[str, Any]:
    """The leaves by path, in the order of `jax.tree.leaves`.

    Raises `ConfigError` for a leaf that is none of ``kinds`` or that, in a run of several processes, is not global.
    """
    out: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        require(isinstance(leaf, kinds), f"checkpoint: {name} is a {type(leaf).__name__}; leaves must be arrays")
        require(name not in out, f"checkpoint: two leaves have the path {name}")
        require(
            jax.process_count() == 1 or not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable,
            f"checkpoint: {name} lives on one process only; put it on the mesh (replicated, if need be)",
        )
        out[name] = leaf
    return out


def describe(array: Any) -> list[Any]:
    """The dtype and shape as JSON, ``["float32", [256, 128]]``; a typed random key keeps its kind, ``"key<fry>"``."""
    return [str(array.dtype), list(array.shape)]


def check_fits(wanted: Mapping[str, Any], saved: Mapping[str, Any], partial: bool, path: Path) -> None:
    """Raises `ConfigError` naming the leaves in which ``wanted`` is not what was saved.

    Args:
      wanted: named arrays or `jax.ShapeDtypeStruct`.
      saved: what `describe` said of each saved array.
      partial: whether ``wanted`` may leave out some.
      path: of the checkpoint, for the message.
    """
    wrong = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    wrong += [f"{name} is not asked for" for name in saved if not partial and name not in wanted]
    for name in wanted.keys() & saved.keys():
        (dtype, shape), (saved_dtype, saved_shape) = describe(wanted[name]), saved[name]
        if (dtype, shape) != (saved_dtype, saved_shape):
            wrong.append(f"{name} is {saved_dtype}{saved_shape} in the checkpoint, not {dtype}{shape}")
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    require(not wrong, f"{path} does not fit: {'; '.join(sorted(wrong)[:3])}{more}")


def target(leaf: Any) -> Any:
    """What Orbax is to make of a leaf of a template; without a sharding it would take the one of the save."""
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
