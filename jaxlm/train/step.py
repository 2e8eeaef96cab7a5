"""One training step and one evaluation step, as pure functions to be jitted.

The loss of a step is a sum over tokens divided once by their weight, however the batch is cut: into microbatches
(accumulation), over devices (sharding) or into packed rows. Randomness depends on (seed, step) alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm import dist
from jaxlm.core import compat
from jaxlm.core.config import require
from jaxlm.core.params import initialize
from jaxlm.core.types import Params, Specs
from jaxlm.model.decoder import Decoder
from jaxlm.model.encoder_decoder import Transducer
from jaxlm.model.positions import plain_positions
from jaxlm.train.lora import Lora
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.select import join, split

Batch = Mapping[str, Any]


class TrainState(NamedTuple):
    """Everything a run continues from.

    Attributes:
      step: int32 scalar, steps done; it is also the position in the data.
      seed: uint32 scalar; with the step, the source of all randomness. Traced: runs that differ in it share a compile.
      params: trained and frozen parameters; ``{"base", "lora"}`` when adapters are trained.
      optimizer: `jaxlm.train.optimizer.OptimizerState`.
      feedback: what the objective goes by from step to step (`Follows`); () for most.
    """

    step: Any
    seed: Any
    params: Any
    optimizer: Any
    feedback: Any = ()


@runtime_checkable
class Follows(Protocol):
    """An objective whose next loss depends on what this step finds, as a controlled price does."""

    def start(self) -> Any:
        """The feedback before the first step, a pytree of scalars."""

    def informed(self, batch: Batch, feedback: Any) -> Batch:
        """A step's batch, with what the loss needs of the feedback, as arrays [B, ...]."""
        ...

    def follow(self, feedback: Any, step: jax.Array, metrics: Mapping[str, jax.Array]) -> Any:
        """The feedback after a step, from its number (of steps done) and its metrics."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """The pure functions of a run: `init`, `step`, `evaluate`.

    Attributes:
      model: the forward pass.
      objective: a `jaxlm.objective` method.
      optimizer: what is trained and how.
      total_steps: of the run, for the schedule.
      seed: of initial values, dropout, drawn positions and the objective's own noise, unless `init` is given another.
      accumulate: number of microbatches a batch is cut into; microbatch i holds rows i, i + n, i + 2n, ...
      lora: adapters to train in place of the parameters, or None.
      mesh: where it runs; None for one device.
    """

    model: Decoder | Transducer
    objective: Any
    optimizer: Optimizer
    total_steps: int
    seed: int = 0
    accumulate: int = 1
    lora: Lora | None = None
    mesh: jax.sharding.Mesh | None = None

    @functools.cached_property
    def model_specs(self) -> Specs:
        return self.model.param_specs()

    @functools.cached_property
    def specs(self) -> Specs:
        """Of `TrainState.params`."""
        if self.lora is None:
            return self.model_specs
        return {"base": self.model_specs, "lora": self.lora.specs(self.model_specs)}

    @functools.cached_property
    def trainable(self) -> frozenset[str]:
        """Paths of the parameters that are trained. Raises `ConfigError` for patterns that match nothing."""
        return self._optimizer.trainable_paths(self.specs)

    @functools.cached_property
    def _optimizer(self) -> Optimizer:
        if self.lora is None:
            return self.optimizer
        return dataclasses.replace(self.optimizer, trainable=("lora/*",), frozen=())

    @functools.cached_property
    def _update(self) -> optax.GradientTransformation:
        return self._optimizer.build(self.specs, self.total_steps)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        return self.optimizer.schedule.build(self.total_steps)

    # ---- state

    def init(self, params: Params | None = None, seed: int | None = None) -> TrainState:
        """The state before the first step, from fresh values or given model parameters. Under a mesh, sharded."""
        number = np.uint32(self.seed if seed is None else seed)
        if params is None:
            return self._from_seed(number)
        if self.mesh is not None:  # they may come from one device
            params = jax.device_put(params, dist.param_shardings(self.mesh, self.model_specs))
        # Copied, since the step donates its state.
        copy = compat.jit_once(lambda n, p: self._fresh(n, jax.tree.map(jnp.copy, p)), out_shardings=self.shardings())
        return copy(number, params)

    @functools.cached_property
    def _from_seed(self) -> Callable[[Any], TrainState]:
        return compat.jit_once(self._initial, out_shardings=self.shardings())

    def _initial(self, seed: jax.Array) -> TrainState:
        return self._fresh(seed, initialize(self.model_specs, jax.random.key(seed)))

    def _fresh(self, seed: jax.Array, params: Any) -> TrainState:
        if self.lora is not None:
            adapters = self.lora.init(jax.random.fold_in(jax.random.key(seed), 1), self.model_specs)
            params = {"base": params, "lora": adapters}
        chosen, _ = split(params, self.trainable.__contains__)
        feedback = self.objective.start() if isinstance(self.objective, Follows) else ()
        return TrainState(jnp.zeros((), jnp.int32), jnp.asarray(seed), params, self._update.init(chosen), feedback)

    def template(self) -> TrainState:
        """The state's shapes, dtypes and (under a mesh) places, for restoring into."""
        shapes = jax.eval_shape(self._initial, np.uint32(0))
        places = self.shardings()
        if places is None:
            return shapes
        return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)

    def shardings(self) -> Any:
        """Where each array of the state lives: moments and averages beside their parameters, numbers everywhere."""
        mesh = self.mesh
        if mesh is None:
            return None
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        params = dist.param_shardings(mesh, self.specs)
        chosen, _ = split(params, self.trainable.__contains__)
        like = jax.tree.structure(chosen)
        shapes = jax.eval_shape(self._initial, np.uint32(0))

        def place(tree: Any) -> Any:
            # An optimizer's state holds copies of the parameters' tree; all else is numbers.
            def is_params(x: Any) -> bool:
                return jax.tree.structure(x) == like

            return jax.tree.map(lambda x: chosen if is_params(x) else everywhere, tree, is_leaf=is_params)

        feedback = jax.tree.map(lambda _: everywhere, shapes.feedback)
        return TrainState(everywhere, everywhere, params, place(shapes.optimizer), feedback)

    def model_params(self, params: Any) -> Any:
        """The model's own parameters, adapters merged."""
        return params if self.lora is None else self.lora.merge(params["base"], params["lora"], self.model_specs)

    def averaged(self, state: TrainState) -> Any:
        """The model's parameters with their running averages in place where those are kept."""
        if not self.optimizer.ema_decay:
            return self.model_params(state.params)
        _, frozen = split(state.params, self.trainable.__contains__)
        return self.model_params(join(state.optimizer.ema, frozen))

    # ---- steps

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. Returns the new state and scalars: the objective's means, grad_norm, learning_rate, tokens,
        skipped, skipped_in_a_row.

        Raises `ConfigError` (when traced) for a batch that ``accumulate`` does not divide.
        """
        with dist.use_mesh(self.mesh):
            key = jax.random.fold_in(jax.random.key(state.seed), state.step)
            batch = self._prepared(batch, key, train=True)
            follows = self.objective if isinstance(self.objective, Follows) else None
            if follows is not None:
                batch = follows.informed(batch, state.feedback)
            chosen, frozen = split(state.params, self.trainable.__contains__)

            def loss(chosen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
                params = self.model_params(join(chosen, frozen))
                return self.objective.loss(self.model, params, batch, key)

            grad = jax.value_and_grad(loss, has_aux=True)
            (_, sums), gradients = self._accumulated(grad, chosen, batch, key)
            weight = sums["loss"][1]
            # A batch without any weighted token has gradient 0, not NaN.
            gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-8), gradients)
            change: Any = self._update.update(gradients, state.optimizer, chosen)
            updates, optimizer = change
            updated: Any = optax.apply_updates(chosen, updates)
            params = join(updated, frozen)
            metrics = {name: total / jnp.maximum(w, 1e-8) for name, (total, w) in sums.items()}
            metrics |= {
                "tokens": weight,
                "grad_norm": optax.tree.norm(gradients),
                "learning_rate": jnp.asarray(self.schedule(state.step - state.optimizer.skipped), jnp.float32),
                "skipped": optimizer.skipped,
                "skipped_in_a_row": optimizer.in_a_row,
            }
            done = state.step + 1
            feedback = state.feedback
            if follows is not None:  # a step that is skipped says nothing
                following = follows.follow(feedback, done, metrics)
                skipped = optimizer.in_a_row > 0
                feedback = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), feedback, following)
            state = TrainState(done, state.seed, params, optimizer, feedback)
            if self.mesh is not None:  # the places of the input again, so that it can be donated and one compile serves
                state = jax.lax.with_sharding_constraint(state, self.shardings())
            return state, metrics

    @functools.cached_property
    def steps(self) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
        """`step` over batches stacked in a first axis, compiled, in one call of the device, which takes the state's
        memory; metrics are stacked, too. For small models, whose steps take less time than a call."""
        return jax.jit(functools.partial(jax.lax.scan, self.step), donate_argnums=0)

    def evaluate(self, params: Any, batch: Batch, seed: int | jax.Array = 0) -> dict[str, tuple[jax.Array, jax.Array]]:
        """``{name: (sum, weight)}`` of the objective on a batch, the model in evaluation mode."""
        with dist.use_mesh(self.mesh):
            batch = self._prepared(batch, jax.random.key(seed), train=False)
            return self.objective.loss(self.model, params, batch, None)[1]

    def _prepared(self, batch: Batch, key: jax.Array, *, train: bool) -> dict[str, Any]:
        """The batch on its devices, as the objective wants it, with drawn positions where the model draws them."""
        batch = {name: dist.constrain(jnp.asarray(x), ("batch",) + (None,) * (x.ndim - 1)) for name, x in batch.items()}
        batch = dict(self.objective.prepare(batch, jax.random.fold_in(key, 1)))
        rows, length = batch["tokens"].shape
        plain = plain_positions(rows, length, batch.get("segment_ids"))
        looked_up = batch.get("position_ids", jnp.broadcast_to(plain, (rows, length)))
        drawn = self.model.draw(jax.random.fold_in(key, 2), looked_up, train=train)
        batch.pop("positions", None)
        if drawn is not None:
            batch["position_ids" if "position_ids" in batch else "positions"] = drawn
        return batch

    def _accumulated(self, grad: Callable[..., Any], chosen: Any, batch: Batch, key: jax.Array) -> Any:
        n = self.accumulate
        if n == 1:
            return grad(chosen, batch, key)
        rows = batch["tokens"].shape[0]
        require(rows % n == 0, f"accumulate {n} does not divide the batch of {rows} rows")
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(rows // n, n, *x.shape[1:]), 1, 0), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(grad, chosen, first, key))

        def add(total: Any, part: tuple[Any, jax.Array]) -> tuple[Any, None]:
            one = grad(chosen, part[0], jax.random.fold_in(key, part[1]))
            return jax.tree.map(jnp.add, total, one), None

        return jax.lax.scan(add, zero, (parts, jnp.arange(n)))[0]
