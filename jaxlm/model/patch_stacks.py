"""What a model with a patcher is made of, as models: its own layers, which see patches, and those that see bytes."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax

from jaxlm.core.types import Params
from jaxlm.ffn.base import Aux
from jaxlm.model import decoder
from jaxlm.model.spec import ModelSpec


def global_spec(spec: ModelSpec) -> ModelSpec:
    """The model's own layers, as a model that reads patches."""
    return dataclasses.replace(spec, patcher=None)


@functools.cache
def stack_specs(spec: ModelSpec) -> dict[str, ModelSpec]:
    """Each stack of local layers as a model; the last one has the norm before the head."""
    common = {"vocab_size": 1, "width": spec.patcher.width, "dtype": spec.dtype, "remat": spec.remat}
    common |= {"dropout": spec.dropout, "residual_multiplier": spec.residual_multiplier}
    return {
        name: ModelSpec(**common, layers=layers, norm=spec.norm if name == "decoder" else None)
        for name, layers in spec.patcher.stacks().items()
    }


def streaming(spec: ModelSpec) -> dict[str, ModelSpec]:
    """What sees the bytes as they come: stacks as models, and whole models."""
    stacks = stack_specs(spec)
    return {name: stacks[name] for name in spec.patcher.streams if name in stacks} | spec.patcher.models()


def max_positions(spec: ModelSpec) -> int | None:
    """The longest text that all position encodings can represent, or None; the model's own count patches."""
    limits = [decoder.max_positions(stream) for stream in streaming(spec).values()]
    inner = decoder.max_positions(global_spec(spec))
    limits.append(None if inner is None else int(inner / spec.patcher.patches_per_byte))
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


class Stacks:
    """Runs local stacks and whole models: those that stream with their states, which it keeps, and others without."""

    def __init__(self, spec: ModelSpec, params: Params, states: dict[str, Any] | None, train: bool, rng: Any) -> None:
        self.spec, self.params, self.train, self.rng = spec, params, train, rng
        self.states = None if states is None else dict(states)
        self.reports: list[Aux] = []

    def _run(self, name: str, x: jax.Array, segments: Any, positions: Any, state: Any) -> Any:
        return decoder.forward(
            stack_specs(self.spec)[name],
            self.params[name],
            inputs_embeds=x,
            segment_ids=segments,
            positions=positions,
            state=state,
            train=self.train,
            rng=None if self.rng is None else jax.random.fold_in(self.rng, zlib.crc32(name.encode())),
            logits=False,
        )

    def stream(self, name: str, x: jax.Array, segment_ids: Any, positions: Any = None) -> jax.Array:
        """A stack or model that sees all bytes as they come; one that the patcher does not have gives x."""
        if name not in streaming(self.spec):
            return x
        state, model = None if self.states is None else self.states[name], self.spec.patcher.models().get(name)
        if model is None:
            out = self._run(name, x, segment_ids, positions, state)
            self.reports.append(out.aux)
        else:
            params = jax.lax.stop_gradient(self.params[name])
            out = decoder.forward(model, params, x, segment_ids=segment_ids, positions=positions, state=state)
            assert out.logits is not None
        if self.states is not None:
            self.states[name] = out.state
        return out.hidden if out.logits is None else out.logits

    def alone(self, name: str, x: jax.Array, segment_ids: Any, positions: Any = None) -> jax.Array:
        """A stack that sees all it needs at once."""
        return self._run(name, x, segment_ids, positions, None).hidden
