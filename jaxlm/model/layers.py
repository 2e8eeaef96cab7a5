"""The stack of blocks as pure functions on the residual stream: a block, and all of them scanned or one by one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import dist
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError
from jaxlm.core.params import shared, unite
from jaxlm.core.types import Context, Dims, Params, Specs
from jaxlm.ffn.base import Aux
from jaxlm.model.spec import Block, Group, ModelSpec, hands_on

POLICIES: dict[str, Any] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def block_specs(block: Block, dims: Dims) -> Specs:
    """Every parameter of a block, those that it shares with others among them (`jaxlm.core.params.divide`)."""
    specs: Specs = {"mixer": block.mixer.params(dims)}
    if block.ffn is not None:
        specs["ffn"] = block.ffn.params(dims)
    for part in list(specs):
        if not _bare(block, part) and not (part == "ffn" and block.residual == "parallel_shared"):
            specs[f"{part}_norm"] = block.norm.params(dims.width)
        if block.placement in ("sandwich", "output"):
            specs[f"{part}_out_norm"] = block.norm.params(dims.width)
    return shared(specs, block.share) if block.share else specs


def _bare(block: Block, part: str) -> bool:
    """A part of the block takes the stream as it is."""
    return block.placement in ("output", "none") or (block.placement == "pre_ffn" and part == "mixer")


def dropout(x: jax.Array, rate: float, key: jax.Array | None, train: bool) -> jax.Array:
    """Inverted dropout; the identity outside training. Raises `ConfigError` if training has no key."""
    if not train or rate == 0:
        return x
    if key is None:
        raise ConfigError("dropout needs a key in training: pass rngs={'dropout': key}")
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def apply_block(
    block: Block, p: Params, x: jax.Array, ctx: Context, state: Any, *, rate: float, multiplier: float
) -> tuple[jax.Array, Any, Aux]:
    """One block on x [B, L, D]; returns x, the mixer's new state and what the ffn reports."""
    new_state, aux = state, {}

    def run(part: str, inputs: jax.Array) -> jax.Array:
        nonlocal new_state, aux
        if part == "mixer":
            out, new_state = block.mixer(p["mixer"], inputs, ctx, state)
        else:
            out, aux = block.ffn(p["ffn"], inputs, ctx)
        if block.placement in ("sandwich", "output"):
            out = block.norm(p[f"{part}_out_norm"], out)
        key = None if ctx.rng is None else jax.random.fold_in(ctx.rng, part == "ffn")
        out = dropout(out, rate, key, ctx.train)
        return out if multiplier == 1 else out * multiplier

    if block.residual != "serial":
        inputs = block.norm(p["mixer_norm"], x)
        shared = block.residual == "parallel_shared"
        x = x + run("mixer", inputs) + run("ffn", inputs if shared else block.norm(p["ffn_norm"], x))
    else:
        for part in ("mixer", "ffn") if block.ffn is not None else ("mixer",):
            if block.placement == "post":
                x = block.norm(p[f"{part}_norm"], x + run(part, x))
            elif block.placement == "normed":
                x = block.norm(p[f"{part}_norm"], x)
                x = x + run(part, x)
            else:
                x = x + run(part, x if _bare(block, part) else block.norm(p[f"{part}_norm"], x))
    return dist.constrain(x, ("batch", "length", None)), new_state, aux


def unstack(params: Params) -> dict[str, Any]:
    """The same parameters with each group a list over its repeats, for loops that run layers unrolled."""

    def one(name: str, value: Any) -> Any:
        if name.startswith("group_"):
            return _layers(value)
        return unstack(value) if isinstance(value, Mapping) else value

    return {name: one(name, value) for name, value in params.items()}


def _layers(group: Any) -> list[Any]:
    if isinstance(group, (list, tuple)):
        return list(group)
    count = jax.tree.leaves(group)[0].shape[0]
    return [jax.tree.map(lambda a, i=i: a[i], group) for i in range(count)]


def _walk(spec: ModelSpec, params: Params) -> Iterator[tuple[Block, Params]]:
    """Every block of the model in order with its parameters, per-layer fields set."""
    for i, group in enumerate(spec.layers):
        whole = _whole(spec, group, params.get("shared", {}))
        layers = _layers(params[f"group_{i}"]) if f"group_{i}" in params else [{}] * group.repeats
        for r, layer in enumerate(layers):
            blocks = group.blocks({path: values[r] for path, values in group.per_layer})
            for j, block in enumerate(blocks):
                yield block, whole(j, layer)


def _whole(spec: ModelSpec, group: Group, common: Params) -> Callable[[int, Params], Params]:
    """``whole(j, layer)``: the parameters of a repeat's block j, its own (``layer``) and those it shares."""
    if not common:
        return lambda j, layer: layer[f"block_{j}"]
    dims = Dims(width=spec.width, layers=spec.depth)
    specs = [block_specs(block, dims) for block in group.pattern]
    return lambda j, layer: unite(specs[j], layer.get(f"block_{j}", {}), common)


def apply_layers(
    spec: ModelSpec,
    params: Params,
    x: jax.Array,
    ctx: Context,
    state: tuple[Any, ...] | None = None,
    *,
    layers: tuple[int, int] | None = None,
) -> tuple[jax.Array, tuple[Any, ...] | None, Aux]:
    """The blocks of the model, or those from ``layers[0]`` up to ``layers[1]``, on x [B, L, D].

    Stacked groups are scanned when there is no state and the range begins and ends between groups; otherwise layers run
    unrolled. ``state`` holds one entry per block of the whole model, and is returned in the same form. Last comes what
    layers report, each number the mean over the layers that do.
    """
    run = functools.partial(apply_block, rate=spec.dropout, multiplier=spec.residual_multiplier)
    plain = all(not isinstance(params.get(f"group_{i}"), (list, tuple)) for i in range(len(spec.layers)))
    start, stop = layers or (0, spec.depth)
    edges = [0, *itertools.accumulate(len(group.pattern) * group.repeats for group in spec.layers)]
    if state is None and plain and start in edges and stop in edges:
        x, found = _scan_layers(spec, params, x, ctx, run, (edges.index(start), edges.index(stop)))
        return x, None, _means(found)
    require(0 <= start <= stop <= spec.depth, f"layers {layers}: expected a range within 0..{spec.depth}")
    entries = list(state) if state is not None else None
    found: list[Aux] = []
    for n, (block, p) in enumerate(_walk(spec, params)):
        if start <= n < stop:
            entry = None if entries is None else entries[n]
            ctx = _hand_on(block, p, x, ctx, entry)
            x, entry, aux = run(block, p, x, _for_layer(ctx, n), entry)
            found.append(aux)
            if entries is not None:
                entries[n] = entry
    return x, None if entries is None else tuple(entries), _means(found)


def _means(found: list[Aux]) -> Aux:
    """The mean of each name over all layers that report it; an entry is of one layer, or stacked of several."""
    names = sorted({name for aux in found for name in aux})
    return {name: jnp.concatenate([jnp.ravel(aux[name]) for aux in found if name in aux]).mean() for name in names}


def _hand_on(block: Block, p: Params, x: jax.Array, ctx: Context, state: Any) -> Context:
    """The context of a block and those after it, with what its mixer hands on to them."""
    if not getattr(block.mixer, "hands_on", False):
        return ctx
    plain = block.placement == "post" or _bare(block, "mixer")
    inputs = x if plain else block.norm(p["mixer_norm"], x)
    return dataclasses.replace(ctx, handed={**ctx.handed, **block.mixer.hand_on(p["mixer"], inputs, ctx, state)})


def _for_layer(ctx: Context, index: int | jax.Array) -> Context:
    return ctx if ctx.rng is None else dataclasses.replace(ctx, rng=jax.random.fold_in(ctx.rng, index))


def _scan_layers(
    spec: ModelSpec, params: Params, x: jax.Array, ctx: Context, run: Callable[..., Any], groups: tuple[int, int]
) -> tuple[jax.Array, list[Aux]]:
    first, found = 0, []
    for i, group in enumerate(spec.layers):
        if not groups[0] <= i < groups[1]:
            first += group.repeats * len(group.pattern)
            continue
        numbers = {path: jnp.asarray(values) for path, values in group.per_layer}
        whole = _whole(spec, group, params.get("shared", {}))

        def repeat(x: jax.Array, layer: Any, group=group, first=first, whole=whole, ctx=ctx) -> tuple[jax.Array, Any]:
            (p, values, r), reports = layer, []
            for j, block in enumerate(group.blocks(values)):
                ctx = _hand_on(block, whole(j, p), x, ctx, None)
                layer_ctx = _for_layer(ctx, first + r * len(group.pattern) + j)
                x, _, aux = run(block, whole(j, p), x, layer_ctx, None)
                reports.append(aux)
            return x, (reports, ctx.handed if hands_on(group) else {})

        if spec.remat != "none":
            repeat = jax.checkpoint(repeat, prevent_cse=False, policy=POLICIES[spec.remat])
        layers = params.get(f"group_{i}", {}), numbers, jnp.arange(group.repeats)
        x, (reports, handed) = jax.lax.scan(repeat, x, layers)
        if handed:  # of a group of one repeat
            ctx = dataclasses.replace(ctx, handed=jax.tree.map(lambda a: a[0], handed))
        first += group.repeats * len(group.pattern)
        found += reports
    return x, found
