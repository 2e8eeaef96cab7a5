"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022).

A matrix W [in, out] of the frozen model becomes W + (alpha / rank) A B, with A [in, rank] drawn at random and B
[rank, out] zero, so training starts from the model itself. A and B alone are trained: `Lora.merge` is pure, and whoever
differentiates it in the adapters treats the parameters as constants. Merged parameters are plain parameters, so
evaluation, decoding and export need to know nothing of LoRA.

What is "in" and what is "out" comes from the `ParamSpec`: the fan-in dimensions, flattened, against the others,
flattened. So a fused projection qkv [width, groups, R + 2, head width] has one A of [width, rank], and a parameter
stacked over layers has its factors stacked likewise.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.params import FanIn, ParamSpec, Tree, flatten, initialize, map_specs, zeros
from jaxlm.train.select import match, split


@dataclasses.dataclass(frozen=True)
class Lora(Spec):
    """Low-rank adapters for the matrices whose path matches one of ``patterns`` (`jaxlm.train.select`)."""

    rank: int = 8
    alpha: float = 16.0
    patterns: tuple[str, ...] = ("*/mixer/*",)

    def check(self) -> None:
        require(self.rank >= 1, f"Lora.rank: {self.rank} is not 1 or more")
        require(self.patterns, "Lora.patterns: no pattern, so there would be nothing to train")

    def specs(self, specs: Tree) -> dict[str, Any]:
        """`ParamSpec`s of the adapters: at the path of each matched matrix ``{"a": [in, rank], "b": [rank, out]}``.

        Args:
          specs: of the model's parameters.

        Raises `ConfigError` for a pattern that matches no matrix, with the candidates.
        """
        matrices = [path for path, spec in flatten(specs) if _is_matrix(spec)]
        chosen, _ = split(specs, match(self.patterns, matrices, "Lora.patterns").__contains__)
        return map_specs(lambda _, spec: self._factors(spec), chosen)

    def init(self, key: jax.Array, specs: Tree) -> dict[str, Any]:
        """Fresh float32 adapters for a model of these ``specs``; merging them changes nothing yet."""
        return initialize(self.specs(specs), key)

    def merge(self, params: Tree, adapters: Tree, specs: Tree) -> dict[str, Any]:
        """``params`` with (alpha / rank) A B added to each adapted matrix, in that matrix's shape and dtype."""
        return _merge(params, adapters, specs, self.alpha / self.rank)

    def _factors(self, spec: ParamSpec) -> dict[str, ParamSpec]:
        out = _fan_out(spec)
        # The first of several flattened axes names them all: sharded by it, they are cut in the same places.
        a = ParamSpec((spec.fan_in_size, self.rank), (spec.axes[spec.fan_in[0]], None), FanIn(), stack=spec.stack)
        columns = math.prod(spec.shape[i] for i in out)
        b = ParamSpec((self.rank, columns), (None, spec.axes[out[0]]), zeros, stack=spec.stack)
        return {"a": a, "b": b}


def _merge(params: Tree, adapters: Tree, specs: Tree, scale: float) -> dict[str, Any]:
    merged = dict(params)
    for name, inner in adapters.items():
        if isinstance(specs[name], ParamSpec):
            delta = scale * _product(inner["a"], inner["b"], specs[name])
            merged[name] = params[name] + delta.astype(params[name].dtype)
        else:
            merged[name] = _merge(params[name], inner, specs[name], scale)
    return merged


def _product(a: jax.Array, b: jax.Array, spec: ParamSpec) -> jax.Array:
    """A B, [in, out] or [layers, in, out], laid out in the dimensions of ``spec``."""
    order = (*spec.fan_in, *_fan_out(spec))
    lead = 1 if spec.stack else 0
    product = jnp.matmul(a, b, precision="highest")  # rank is small: exact costs nothing
    unflat = product.reshape(*spec.full_shape[:lead], *(spec.shape[i] for i in order))
    home = [order.index(i) + lead for i in range(len(order))]
    return jnp.transpose(unflat, (*range(lead), *home))


def _fan_out(spec: ParamSpec) -> tuple[int, ...]:
    return tuple(i for i in range(len(spec.shape)) if i not in spec.fan_in)


def _is_matrix(spec: ParamSpec) -> bool:
    return spec.decay and bool(spec.fan_in) and bool(_fan_out(spec))
