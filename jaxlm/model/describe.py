"""A model in words and numbers: parameters, shapes, axes, FLOPs."""

from __future__ import annotations

import math
from typing import Any

from jaxlm.core.params import count, flatten
from jaxlm.model import decoder, patched
from jaxlm.model.language_model import Model
from jaxlm.model.spec import ModelSpec


def parameter_count(model: Model) -> int:
    """Number of trained numbers, shared ones counted once."""
    return count(model.pure.param_specs())


def active_parameter_count(model: Model) -> int:
    """Number of those that take part in one token's forward pass: of the experts, the ones it is sent to."""
    return round(sum(math.prod(s.full_shape) * s.active for _, s in flatten(model.pure.param_specs())))


def forward_flops(spec: ModelSpec, length: int) -> float:
    """FLOPs per token of a forward pass at ``length``: 2 per weight of each matmul, plus what mixers say of themselves.

    Of the experts count those that a token is sent to; what layers share counts in each of them. The embedding look-up,
    norms and activations are left out, as is usual, and a pooler, which looks at one token of a row. A training step
    costs three times as much (forward once, backward twice), recomputation not counted. With a patcher it is per byte,
    and empty slots of patches count as full ones.
    """
    if spec.patcher is not None:
        return patched.forward_flops(spec, length, forward_flops)
    specs = decoder.param_specs(spec)
    matmuls = sum(
        math.prod(leaf.full_shape) * leaf.active * leaf.uses
        for path, leaf in flatten(specs)
        if leaf.decay and not path.startswith(("embed/table", "embed/types", "position/", "pooler/"))
    )
    head = spec.vocab_size * (spec.embed_width or spec.width) if spec.tied_head else 0
    dims = decoder.dims_of(spec)
    mixing = sum(
        block.mixer.flops(dims, length)
        for group in spec.layers
        for r in range(group.repeats)
        for block in group.blocks({path: values[r] for path, values in group.per_layer})
    )
    return 2.0 * (matmuls + head) + mixing


def model_flops(model: Model, length: int) -> float:
    """`forward_flops` of every stack of a model: of an encoder-decoder, for source and target of ``length`` each."""
    return sum(forward_flops(spec, length) for spec in model.pure.stacks.values())


def describe(model: Model, length: int = 1024) -> str:
    """A table of every parameter with its shape, logical axes and size; totals, and FLOPs per token at ``length``."""
    rows: list[tuple[Any, ...]] = [("parameter", "shape", "axes", "size")]
    for path, spec in flatten(model.pure.param_specs()):
        axes = ", ".join(name or "-" for name in spec.full_axes)
        rows.append((path, " x ".join(map(str, spec.full_shape)), axes, f"{math.prod(spec.full_shape):,}"))
    widths = [max(len(str(row[i])) for row in rows) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    flops, total, active = model_flops(model, length), parameter_count(model), active_parameter_count(model)
    blocks, dtype = sum(spec.depth for spec in model.pure.stacks.values()), model.pure.writer.dtype
    used = "" if active == total else f" ({active:,} active)"
    lines.append(f"parameters: {total:,}{used}   blocks: {blocks}   dtype: {dtype}")
    lines.append(f"FLOPs per token at length {length:,}: {flops:,.0f} forward, {3 * flops:,.0f} in a training step")
    return "\n".join(lines)
