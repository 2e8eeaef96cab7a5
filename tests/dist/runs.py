"""One small run that every test of this folder repeats on other devices: a model, its data, 20 steps."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxlm import dist
from jaxlm.data.loader import Loader
from jaxlm.data.pack import TokenStream, rows
from jaxlm.ffn.glu import Glu
from jaxlm.mixer.attention import Attention
from jaxlm.model.decoder import Decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.step import Trainer, TrainState

STEPS, ROWS, LENGTH, VOCABULARY = 20, 16, 32, 64

MODEL = ModelSpec(
    vocab_size=VOCABULARY,
    width=32,
    layers=(Group((Block(mixer=Attention(heads=8, kv_heads=4), ffn=Glu(hidden=64)),), repeats=2),),
)
# The clip is at work in the first steps.
OPTIMIZER = Optimizer(schedule=Schedule(peak=1e-3, warmup=0), clip_norm=0.5, ema_decay=0.9)


@dataclasses.dataclass
class Run:
    """What a run leaves behind: float32 losses [STEPS], the gradient of step 0 by path, and the last state."""

    losses: np.ndarray
    gradient: dict[str, np.ndarray]
    state: TrainState


def trainer(mesh: jax.sharding.Mesh | None, accumulate: int = 1) -> Trainer:
    return Trainer(Decoder(MODEL), NextToken(), OPTIMIZER, STEPS, accumulate=accumulate, mesh=mesh)


def mesh_of(text: str) -> jax.sharding.Mesh:
    """``"2x2x2"`` (data x fsdp x tensor) over as many devices as that takes."""
    sizes = [int(n) for n in text.split("x")]
    return dist.make_mesh(dist.Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])


@functools.cache
def loaders() -> tuple[Loader, Loader]:
    """Documents of 1 to 60 tokens, some with a prompt: packed, and padded."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 61, 200)
    stops = np.cumsum(sizes)
    prompts = np.where(rng.random(200) < 0.3, sizes // 3, 1)
    stream = TokenStream(rng.integers(1, VOCABULARY, stops[-1]).astype(np.uint8), stops, stops - sizes + prompts)
    packed, padded = (Loader(rows(stream, LENGTH, layout), ROWS) for layout in ("pack", "pad"))
    return packed, padded


def batch(mesh: jax.sharding.Mesh | None, step: int) -> dict[str, jax.Array]:
    """Packed rows at even steps, padded ones at odd steps."""
    loader = loaders()[step % 2]
    return dist.global_batch(mesh, lambda part: loader(step, part), ROWS)


def run(train: Trainer, state: TrainState | None = None) -> Run:
    """20 steps from the state given (or a fresh one), which is donated."""
    state = train.init() if state is None else state
    step = jax.jit(train.step, donate_argnums=0)
    losses, gradient = [], {}
    for number in range(STEPS):
        state, metrics = step(state, batch(train.mesh, number))
        losses.append(float(metrics["loss"]))
        if number == 0:
            # Adam's first moment is then (1 - b1) times the clipped gradient.
            factor = max(1.0, float(metrics["grad_norm"]) / OPTIMIZER.clip_norm) / (1 - OPTIMIZER.b1)
            gradient = {path: x * factor for path, x in whole(state.optimizer.inner[0].mu).items()}
    assert step._cache_size() == 1, "one compile serves all steps"  # pyright: ignore[reportFunctionMemberAccess]
    return Run(np.array(losses, np.float32), gradient, state)


def whole(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by path, gathered from all devices and processes."""
    from jax.experimental.multihost_utils import process_allgather

    gather = np.asarray if jax.process_count() == 1 else functools.partial(process_allgather, tiled=True)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(gather(x)) for path, x in leaves}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Every array within ``tolerance`` of the other's largest entry."""
    assert found.keys() == expected.keys()
    for path, want in expected.items():
        error = np.abs(found[path] - want).max() / np.abs(want).max()
        assert error < tolerance, f"{path}: relative error {error:.1e}"
