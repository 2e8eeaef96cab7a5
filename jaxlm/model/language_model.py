"""The Linen shell around the pure decoder, and the functions users call on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax

from jaxlm import dist
from jaxlm.core import compat, config
from jaxlm.core import params as parameters
from jaxlm.core.types import Params, Specs
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder, Output
from jaxlm.model.spec import ModelSpec


class Model(Protocol):
    """A Linen module around pure functions: `LanguageModel`, or `jaxlm.model.encoder_decoder.EncoderDecoder`."""

    spec: Any
    origin: str

    @property
    def pure(self) -> Any:
        """The functions of its specification, of the kind of `jaxlm.model.decoder.Decoder`."""
        ...


class LanguageModel(nn.Module):
    """A decoder language model as a Flax Linen module; `jaxlm.model.inputs.Inputs` holds the arguments' meaning.

        model = jaxlm.LanguageModel(spec)
        params = jaxlm.init(model, jax.random.key(0))
        out = model.apply({"params": params}, tokens)

    With ``train=True`` and dropout, pass ``rngs={"dropout": key}``.

    Attributes:
      spec: what the model is.
      origin: the folder it was imported from, whose tokenizer and other files an export carries on; empty otherwise.
    """

    spec: ModelSpec
    origin: str = ""

    @property
    def pure(self) -> Decoder:
        return Decoder(self.spec)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array | None = None,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        state: Any = None,
        *,
        inputs_embeds: jax.Array | None = None,
        token_types: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
        length: jax.Array | int | None = None,
        ordered: bool | None = None,
        logits: bool = True,
    ) -> Output:
        params = declared(self, self.pure.param_specs())
        return decoder.forward(
            self.spec,
            params,
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            state=state,
            inputs_embeds=inputs_embeds,
            token_types=token_types,
            position_ids=position_ids,
            train=train,
            rng=self.make_rng("dropout") if train and self.has_rng("dropout") else None,
            length=length,
            ordered=ordered,
            logits=logits,
        )


def declared(module: nn.Module, specs: Specs) -> dict[str, Any]:
    """The parameters of ``specs``, each branch a parameter of the module."""
    return {name: module.param(name, functools.partial(_initialize_one, name, one)) for name, one in specs.items()}


def _initialize_one(name: str, specs: Any, key: jax.Array) -> Any:
    return parameters.initialize({name: specs}, key)[name]


def init(model: Model, key: jax.Array, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """Initial parameters, a nested dict of float32 arrays; placed by the axis rules when a mesh is given.

    The values depend on the key and each parameter's path alone, not on the mesh.
    """
    specs = model.pure.param_specs()
    places = None if mesh is None else dist.param_shardings(mesh, specs)
    return compat.jit_once(functools.partial(parameters.initialize, specs), out_shardings=places)(key)


def replace(model: LanguageModel, changes: Mapping[str, Any]) -> LanguageModel:
    """The model with other parts, for the same parameters: methods that learn nothing may be swapped freely.

        windowed = jaxlm.replace(model, {"mixer.mask": Window(1024)})

    Args:
      model: imported, trained, or new.
      changes: ``"model.<field>"``, or the path of a field of every block that has it (``"mixer.position.base"``), to
        its new value: for a slot, a name, a ``{"name", "args"}`` mapping or an object.

    Raises:
      ConfigError: a path that no block has, or a value that does not fit.
    """
    spec = model.spec
    for path, value in changes.items():
        head, _, field = path.partition(".")
        if head == "model":
            spec = config.replace_at(spec, field, value)
            continue
        found = [block for group in spec.layers for block in group.pattern if config.has(block, path)]
        if not found:
            config.replace_at(spec.layers[0].pattern[0], path, value)  # says what there is instead
        layers = tuple(
            dataclasses.replace(
                group,
                pattern=tuple(
                    config.replace_at(block, path, value) if config.has(block, path) else block
                    for block in group.pattern
                ),
            )
            for group in spec.layers
        )
        spec = dataclasses.replace(spec, layers=layers)
    return LanguageModel(spec, origin=model.origin)


def init_state(model: Model, batch: int, max_length: int, cache: Any = "full", source_length: int = 0) -> Any:
    """Empty caches and recurrent states for ``batch`` rows of up to ``max_length`` tokens, padding included.

    ``cache`` is a registered cache policy (name or object); an encoder-decoder's state also holds what its decoder
    reads of a source of ``source_length`` tokens. Raises `ConfigError` beyond a position encoding's table.
    """
    return decoder.init_state(model.pure.writer, batch, max_length, config.make("cache", cache), source_length)


def unembed(model: Model, params: Params, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of ``out.hidden`` [..., D] or any piece of it."""
    return model.pure.unembed(params, hidden)


def draw_positions(model: Model, key: jax.Array, positions: jax.Array) -> jax.Array | None:
    """The positions [B, L] that the model's random encoding draws in place of the plain ones; None if it has none.

    Draw once per batch of rows, for their full length, and pass the result to every call on those rows.
    """
    return model.pure.draw(key, positions)
