"""Endless text through a cache of constant size, for `experiments.context_extension`: loss, time and memory as it goes.

StreamingLLM's claim is that a window breaks where the first tokens leave it, because models use them as a sink of
attention, and that keeping four of them mends it (Xiao et al. 2024). So the share of attention that they get within the
training length is measured beside the losses.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments import context_extension_report as report
from jaxlm.core import registry
from jaxlm.core.types import Context, Params
from jaxlm.mixer.attend import attend, hold, own_params
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import ModelSpec

SINKS = 4


def read_stream(
    model: Decoder, params: Params, rows: np.ndarray, cache: Any, unit: int
) -> Iterator[tuple[int, float, float, int]]:
    """(tokens so far, mean loss of the last ``unit`` of them, milliseconds per step, bytes of the caches).

    Args:
      model, params: what reads.
      rows: int32 [B, n unit + 1], read one token at a time, all rows together.
      cache: its policy.
      unit: tokens between two reports.
    """
    batch, total = rows.shape[0], rows.shape[1] - 1
    state = decoder.init_state(model.spec, batch, total, cache)
    params = decoder.unstack(params)

    @functools.partial(jax.jit, donate_argnums=1)
    def some(params: Params, state: Any, tokens: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        def step(state: Any, both: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            out = model(params, both[0][:, None], state=state)
            assert out.logits is not None
            chosen = jnp.take_along_axis(out.logits[:, 0], both[1][:, None], -1)[:, 0]
            return out.state, jnp.mean(jax.nn.logsumexp(out.logits[:, 0], -1) - chosen)

        state, found = jax.lax.scan(step, state, (tokens.T, targets.T))
        return state, found.mean()

    for start in range(0, total, unit):
        piece = rows[:, start : start + unit + 1]
        began = time.perf_counter()
        state, loss = jax.block_until_ready(some(params, state, piece[:, :-1], piece[:, 1:]))
        seconds = time.perf_counter() - began
        size = sum(x.nbytes for x in jax.tree.leaves(state["layers"]))
        yield start + unit, float(loss), 1000 * seconds / unit, size


@dataclasses.dataclass(frozen=True)
class Probe(Attention):
    """Attention that also notes, outside of a trace, how much of it each query gives to the first tokens."""

    found: ClassVar[list[jax.Array]] = []

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context, state: Any = None) -> Any:
        q, k, v = self.project(p, x_BLD)
        where = own_params(self.position, p, ctx)
        held, _ = hold(self.position, where, x_BLD, k, v, ctx, None)
        first = (jnp.arange(k.shape[1]) < SINKS).astype(v.dtype)
        marked = jnp.broadcast_to(first[None, :, None, None], v.shape)
        self.found.append(attend(self.position, where, q, held, marked, ctx, mask=self.mask, own=True)[..., 0])
        return super().__call__(p, x_BLD, ctx, state)


registry.register("mixer", "sink_probe", Probe)


def sink_mass(spec: ModelSpec, params: Params, rows: np.ndarray) -> list[float]:
    """The mean share of attention that the first `SINKS` tokens of rows [B, L] get from the last half of the queries,
    layer by layer.
    """

    def probed(block: Any) -> Any:
        fields = {f.name: getattr(block.mixer, f.name) for f in dataclasses.fields(block.mixer)}
        return dataclasses.replace(block, mixer=Probe(**fields))

    groups = tuple(dataclasses.replace(g, pattern=tuple(map(probed, g.pattern))) for g in spec.layers)
    Probe.found.clear()
    decoder.forward(dataclasses.replace(spec, layers=groups), decoder.unstack(params), jnp.asarray(rows), logits=False)
    return [float(x[:, x.shape[1] // 2 :].mean()) for x in Probe.found]


def rows_of(
    label: str, seed: int, model: Decoder, params: Params, rows: np.ndarray, cache: Any, unit: int
) -> list[report.Stream]:
    """`read_stream` as rows of streaming.csv."""
    return [report.Stream(label, seed, *found) for found in read_stream(model, params, rows, cache, unit)]
