"""A delete gate for a model that has none: MrT5 (Kallini et al. 2024) from an imported ByT5."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlm.core.config import require
from jaxlm.core.params import initialize
from jaxlm.core.types import Params
from jaxlm.model.delete_gate import DeleteGate
from jaxlm.model.encoder_decoder import EncoderDecoder
from jaxlm.model.spec import Group, ModelSpec


def add_gate(
    model: EncoderDecoder, params: Params, key: jax.Array, gate: DeleteGate | None = None, gain: float = 0.01
) -> tuple[EncoderDecoder, dict[str, Any]]:
    """The model with a delete gate, for training on from a checkpoint (ByT5); ``params`` stacked.

    The gate's weights are drawn small, ``gain`` times their initial size: nearly the same G everywhere, which softmax
    does not see (but softmax1 does: give such a gate a large bias), and above the threshold, so nothing is deleted yet.
    Raises `ConfigError` if there is a gate already, or the encoder has too few blocks for it.
    """
    spec = model.spec
    require(spec.gate is None, "add_gate: the model has a delete gate already")
    own = gate or DeleteGate()
    drawn = initialize({"gate": own.params(spec.encoder.width)}, key)["gate"]
    drawn["weight"] = gain * drawn["weight"]
    layers, encoder = _split_at(spec.encoder, dict(params["encoder"]), own.layer)
    spec = dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, layers=layers), gate=own)
    return EncoderDecoder(spec, model.origin), {**params, "encoder": encoder, "gate": drawn}


def _split_at(spec: ModelSpec, params: dict[str, Any], layer: int) -> tuple[tuple[Group, ...], dict[str, Any]]:
    """The same layers in groups of which one begins at ``layer``, so that both sides are scanned; where the layer is
    within a pattern, the groups stay."""
    first, groups, trees = 0, [], []
    for i, group in enumerate(spec.layers):
        tree, size = params.pop(f"group_{i}", None), len(group.pattern)
        at, odd = divmod(layer - first, size)
        if not odd and 0 < at < group.repeats:
            for part in (slice(0, at), slice(at, group.repeats)):
                numbers = tuple((path, values[part]) for path, values in group.per_layer)
                groups.append(dataclasses.replace(group, repeats=part.stop - part.start, per_layer=numbers))
                trees.append(None if tree is None else jax.tree.map(lambda x, part=part: x[part], tree))
        else:
            groups.append(group)
            trees.append(tree)
        first += size * group.repeats
    return tuple(groups), {**params, **{f"group_{i}": tree for i, tree in enumerate(trees) if tree is not None}}
