"""Pairs of texts through a trainer: the loss of targets given sources, batches, accumulation, devices, checkpoints."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.data.pairs import pair_batch
from jaxlm.data.span_corruption import SpanCorruption
from jaxlm.dist import Mesh, make_mesh
from jaxlm.model.delete_gate import DeleteGate
from jaxlm.model.encoder_decoder import forward
from jaxlm.objective.sequence_to_sequence import SequenceToSequence
from jaxlm.train.config import TrainConfig
from jaxlm.train.loop import fit
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule
from jaxlm.train.step import Trainer
from tests.model.test_encoder_decoder import params_of, stacks
from tests.tiny import VOCABULARY, close

SPEC = stacks(gate=DeleteGate(layer=1))


def copies(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Sources of several lengths, to be written again, with an end."""
    rng = np.random.default_rng(seed)
    sources = [rng.integers(2, VOCABULARY, rng.integers(2, 7)) for _ in range(count)]
    return pair_batch(sources, [[*source, 1] for source in sources], 7, 8, SPEC.start)


@functools.cache
def trainer(accumulate: int = 1, objective=None, mesh=None) -> Trainer:
    optimizer = Optimizer(schedule=Schedule(peak=1e-2))
    objective = objective or SequenceToSequence()
    pure = jaxlm.EncoderDecoder(SPEC).pure
    return Trainer(pure, objective, optimizer, total_steps=40, accumulate=accumulate, mesh=mesh)


def test_a_batch_of_pairs():
    batch = pair_batch([[5, 6, 7], [8]], [[9, 1], [4, 3, 1]], 4, 3, start=2)
    assert batch["source"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch["source_segments"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["tokens"].tolist() == [[2, 9, 0], [2, 4, 3]] and batch["targets"].tolist() == [[9, 1, 0], [4, 3, 1]]
    assert batch["weights"].tolist() == batch["segment_ids"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_spans_as_pairs():
    """The corruption of T5 fills its fixed sizes."""
    how = SpanCorruption(sentinel=VOCABULARY - 1, end=1, density=0.3)
    pairs = [how.pair(np.arange(2, 12), 0, i) for i in range(3)]
    batch = pair_batch([one for one, _ in pairs], [two for _, two in pairs], *how.sizes(10), start=0)
    assert batch["source_segments"].all() and batch["weights"].all() and (batch["targets"][:, -1] == 1).all()


def test_the_loss_is_that_of_the_targets():
    batch, params = copies(3), params_of(SPEC)
    logits = jax.jit(
        lambda p: forward(SPEC, p, batch["source"], batch["tokens"], source_segments=batch["source_segments"])
    )(params).logits
    loss = jax.jit(lambda p: SequenceToSequence().loss(jaxlm.EncoderDecoder(SPEC).pure, p, batch, None))
    total, sums = loss(params)
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["targets"][..., None], -1)[..., 0]
    assert float(total) == pytest.approx(-(log_p * batch["weights"]).sum(), rel=1e-5)
    assert float(sums["loss"][1]) == batch["weights"].sum()


def test_it_trains():
    """Accumulated, and on eight devices, a step is the step; and losses fall, at a rate that a controller follows."""
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    start, batch = trainer().init(params_of(SPEC)), copies(8)
    step = jax.jit(trainer().step)
    one, metrics = step(start, batch)
    for other in (trainer(accumulate=2), trainer(mesh=mesh)):
        state, again = jax.jit(other.step)(other.init(params_of(SPEC)), batch)
        close(jax.device_get(state.params), jax.device_get(one.params), 1e-4)
        np.testing.assert_allclose(again["loss"], metrics["loss"], rtol=1e-5)


class Copies:
    """Batches by step, as a loader gives them."""

    batch_size = 8

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        return {name: x[rows] for name, x in copies(self.batch_size, step).items()}


@pytest.mark.slow
def test_a_run_is_resumed_and_its_checkpoint_is_the_model(tmp_path):
    model, loader = jaxlm.EncoderDecoder(SPEC), Copies()
    go = functools.partial(fit, model=model, objective=SequenceToSequence(), loader=loader, quiet=True)
    config, alone = TrainConfig(steps=3, batch_size=8, save_every=2), jax.devices()[:1]
    whole = go(tmp_path / "whole", config=config, devices=alone)
    again, params = jaxlm.load_checkpoint(tmp_path / "whole")
    assert again.spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(whole.params))
    done = go(tmp_path / "whole", config=config, devices=alone)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(done.params), params)


@pytest.mark.parametrize(
    "sources, targets, message",
    [
        ([[1] * 5], [[1]], "source 0 has 5 tokens; expected 1 to 4"),
        ([[1], [2]], [[1], []], "target 1 has 0 tokens; expected 1 to 3"),
        ([[1], [2]], [[1]], "2 sources and 1 targets"),
    ],
)
def test_pairs_that_do_not_fit(sources, targets, message):
    with pytest.raises(ConfigError, match=message) as caught:
        pair_batch(sources, targets, 4, 3, 0)
    assert "\n" not in str(caught.value)
