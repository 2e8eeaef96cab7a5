"""Gated deletion as an objective that follows what its steps find: the price of a kept token, by a controller."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.data.pairs import pair_batch
from jaxlm.objective.gated_deletion import Control, GatedDeletion, RateController
from jaxlm.train.config import TrainConfig
from jaxlm.train.loop import fit
from tests.model.test_encoder_decoder import params_of
from tests.objective.test_sequence_to_sequence import SPEC, Copies, copies, trainer
from tests.tiny import VOCABULARY, close

CONTROLLER = RateController(0.6, kp=2.0, ki=0.05)


def stacked(*batches):
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def even(count, seed):
    """Pairs as of `copies`, all of one length: a gate's mean is that of its microbatch."""
    rows = np.random.default_rng(seed).integers(2, VOCABULARY, (count, 6))
    return pair_batch(list(rows), [[*row, 1] for row in rows], 7, 8, SPEC.start)


def test_the_price_is_the_controllers_once_the_delay_is_over():
    """Each step's alpha is what the steps before it lead to; with rows of one length, however the batch is cut."""
    delay, number = 2, 6
    objective = GatedDeletion(controller=CONTROLLER, delay=delay)
    batches = stacked(*(even(4, i) for i in range(number)))
    run = trainer(objective=objective)
    state, metrics = run.steps(run.init(params_of(SPEC)), batches)
    expected, control = [0.0] * (delay + 1), Control()
    for deleted in metrics["deleted"][delay:]:
        control = CONTROLLER(control, float(deleted))
        expected.append(float(control.alpha))
    np.testing.assert_allclose(metrics["alpha"], expected[:number], rtol=1e-5)
    assert float(state.feedback.alpha) == pytest.approx(expected[number], rel=1e-5) and expected[-1] > 0
    cut = trainer(objective=objective, accumulate=2)
    _, again = cut.steps(cut.init(params_of(SPEC)), batches)
    np.testing.assert_allclose(again["alpha"], metrics["alpha"], rtol=1e-3)


def test_a_step_that_is_skipped_says_nothing():
    run = trainer(objective=GatedDeletion(controller=CONTROLLER))
    good = copies(4)
    bad = {**good, "weights": np.full_like(good["weights"], np.nan)}
    state, metrics = run.steps(run.init(params_of(SPEC)), stacked(good, bad, bad))
    assert metrics["skipped_in_a_row"].tolist() == [0, 1, 2]
    assert state.feedback == CONTROLLER(Control(jnp.zeros(()), jnp.zeros(())), metrics["deleted"][0])


def test_a_run_without_a_controller_keeps_nothing():
    """So checkpoints of other objectives, and those from before there were controllers, are what they were."""
    assert trainer(objective=GatedDeletion(alpha=1.0)).init(params_of(SPEC)).feedback == ()
    assert jax.tree.leaves(trainer().init(params_of(SPEC)).feedback) == []


@pytest.mark.slow
def test_the_rate_is_followed():
    """Of two targets the higher deletes more, while the loss falls."""
    found = {}
    for target in (0.1, 0.6):
        run = trainer(objective=GatedDeletion(controller=RateController(target, kp=2.0, ki=0.05)))
        _, metrics = run.steps(run.init(params_of(SPEC)), stacked(*(copies(16, i) for i in range(120))))
        losses, shares = np.asarray(metrics["loss"]), np.asarray(metrics["deleted"])
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
        found[target] = np.mean(shares[-20:])
    assert found[0.6] > found[0.1] + 0.2


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_price(tmp_path):
    """Stopped and started again, `fit` ends with the same bits; the price is among them."""
    objective = GatedDeletion(controller=CONTROLLER, hard_share=0.5)
    config = TrainConfig(steps=4, batch_size=8, save_every=2)
    model, alone = jaxlm.EncoderDecoder(SPEC), jax.devices()[:1]
    go = lambda: fit(tmp_path, model, objective, Copies(), config, quiet=True, devices=alone).state
    whole = jax.device_get(go())
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    assert float(whole.feedback.p) != 0
    close(jax.device_get(go()), whole, 0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"delay": -1}, "GatedDeletion.delay: expected a number of steps >= 0, got -1"),
        ({"delay": 5}, "5 steps, but no controller that would begin after them"),
        ({"alpha": 1.0, "controller": CONTROLLER}, "GatedDeletion.alpha: the controller sets it; expected 0, got 1.0"),
    ],
)
def test_bad_fields_end_in_one_line(fields, message):
    with pytest.raises(jaxlm.ConfigError, match=message):
        GatedDeletion(**fields)
