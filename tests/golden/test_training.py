"""Golden vectors of training: schedules, and three steps of clip + AdamW + average on a token-weighted loss."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core.params import ParamSpec
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule

FRACTIONS = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fifth": 1 / 5, "tenth": 1 / 10}


def files(golden: Path, prefix: str) -> list[dict[str, np.ndarray]]:
    found = [dict(np.load(path)) for path in sorted((golden / "training").glob(f"{prefix}*.npz"))]
    assert found, f"no training/{prefix}*.npz in {golden}"
    return found


def fraction(text: str) -> float:
    """``10pct``, ``third`` or ``0`` as a number."""
    if text in FRACTIONS:
        return FRACTIONS[text]
    return float(text.removesuffix("pct")) / (100 if text.endswith("pct") else 1)


def schedule_of(key: str, peak: float) -> tuple[Schedule, int]:
    """The schedule that a key such as ``out_wsd_w100_N1000_decay200_end0`` names, and its number of steps."""
    number = lambda name: int(re.search(rf"_{name}(\d+)", key)[1])
    word = lambda name: fraction(re.search(rf"_{name}_?([a-z]+|[\d.]+(?:pct)?)(?:_|$)", key)[1])
    total, warmup = number("N"), number("w")
    common = {"peak": peak, "warmup": warmup, "final_fraction": word("end")}
    if key.startswith("out_wsd"):
        return Schedule("wsd", decay=number("decay"), **common), total
    if key.startswith("out_infinite"):
        cooldown, decay = number("cd") - warmup, total - number("anneal")
        return Schedule("infinite", cooldown=cooldown, decay=decay, plateau_fraction=word("const"), **common), total
    assert key.startswith("out_warmup_cosine"), f"no schedule for {key}"
    return Schedule("cosine", **common), total


def test_schedules(golden):
    for data in files(golden, "schedules"):
        keys = [key for key in data if key.startswith("out_")]
        assert keys
        with jax.enable_x64(True):
            for key in keys:
                schedule, total = schedule_of(key, float(data["arg_peak"]))
                rate = schedule.build(total)
                ours = [float(rate(jnp.asarray(step))) for step in data["in_step"]]
                np.testing.assert_allclose(
                    ours, data[key], rtol=1e-10, atol=1e-10 * float(data["arg_peak"]), err_msg=key
                )


@pytest.mark.parametrize("x64", [True, False], ids=["float64", "float32"])
def test_trainer_step(golden, x64):
    for data in files(golden, "trainer_step"):
        with jax.enable_x64(x64):
            check_trainer_step(data, x64)


def check_trainer_step(data: dict[str, np.ndarray], x64: bool) -> None:
    optimizer = Optimizer(
        schedule=Schedule("constant", peak=float(data["arg_lr"]), warmup=0),
        b1=float(data["arg_b1"]),
        b2=float(data["arg_b2"]),
        eps=float(data["arg_eps"]),
        weight_decay=float(data["arg_weight_decay"]),
        clip_norm=float(data["arg_clip"]),
        ema_decay=float(data["arg_ema"]),
    )
    microbatches = int(data["arg_microbatches"])
    params = {"head": jnp.asarray(data["in_W"], jnp.float64 if x64 else jnp.float32)}
    transformation = optimizer.build({"head": ParamSpec(params["head"].shape, (None, None))}, len(data["in_X"]))
    state = transformation.init(params)

    def weighted_sum(params, x, labels, weights):
        logits = jnp.einsum("btd,dv->btv", x, params["head"], precision="highest")
        return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    @jax.jit
    def step(params, state, x, labels, weights):
        parts = [
            jax.value_and_grad(weighted_sum)(
                params, x[i::microbatches], labels[i::microbatches], weights[i::microbatches]
            )
            for i in range(microbatches)
        ]
        loss, grads = jax.tree.map(lambda *terms: sum(terms) / jnp.sum(weights), *parts)
        updates, state = transformation.update(grads, state, params)
        return loss, optax.tree.norm(grads), optax.apply_updates(params, updates), state

    def check(ours, reference, what):
        scale = np.abs(reference).max()
        tolerance = {"rtol": 1e-10, "atol": 1e-12 * scale} if x64 else {"rtol": 1e-4, "atol": 2e-5 * scale}
        np.testing.assert_allclose(ours, reference, **tolerance, err_msg=what)

    losses = []
    for i in range(len(data["in_X"])):
        batch = (jnp.asarray(data["in_X"][i], params["head"].dtype), data["in_Y"][i], data["in_mask"][i])
        loss, norm, params, state = step(params, state, *batch)
        losses.append(float(loss))
        check(norm, data["out_grad_norm"][i], f"gradient norm of step {i}")
        check(params["head"], data["out_W"][i], f"parameters after step {i}")
        check(state.ema["head"], data["out_ema"][i], f"average after step {i}")
    check(losses, data["out_loss"], "loss")
    assert not np.allclose(losses, data["out_wrong_mean_of_means"], rtol=1e-4)
