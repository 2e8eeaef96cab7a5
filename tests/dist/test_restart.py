"""What was saved on one set of devices continues on the same bit for bit, and on any other."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlm.train.checkpoint import Checkpointer
from tests.dist.launch import errors, launch
from tests.dist.runs import STEPS, batch, mesh_of, trainer, whole


def test_a_run_continues_on_another_mesh(tmp_path, first):
    """8x1x1, then 2x2x2, then one device: the values are the same bits, and the next step's loss is the same."""
    train = trainer(mesh_of("8x1x1"))
    step = jax.jit(train.step, donate_argnums=0)
    state, _ = step(jax.device_put(first, train.shardings()), batch(train.mesh, 0))
    saved = whole(state)
    with Checkpointer(tmp_path, asynchronous=False) as checkpoints:
        assert checkpoints.save(1, state, {})
    _, metrics = step(state, batch(train.mesh, 1))
    for other in (trainer(mesh_of("2x2x2"), accumulate=2), trainer(None)):
        with Checkpointer(tmp_path) as checkpoints:
            restored = checkpoints.restore(other.template())
        assert restored is not None
        found = whole(restored.state)
        for path, value in saved.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)
        if other.mesh is not None:
            places = jax.tree.map(lambda x: x.sharding, restored.state)
            assert jax.tree.leaves(places) == jax.tree.leaves(other.shardings())
        _, again = jax.jit(other.step, donate_argnums=0)(restored.state, batch(other.mesh, 1))
        assert float(again["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


@pytest.mark.slow
def test_a_killed_process_of_two_is_restarted_and_the_run_continues_bit_for_bit(tmp_path, first):
    whole_run, cut_run = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole_run, cut_run):
        folder.mkdir()
        np.savez(folder / "start.npz", **whole(first.params))
    assert launch(whole_run, "train", "2x2x2") == [0, 0], errors(whole_run)

    codes = launch(cut_run, "train", "2x2x2", alone={1: ["11"]})
    assert codes[1] == -signal.SIGKILL, errors(cut_run)
    assert not (cut_run / "end.npz").exists()
    steps = Checkpointer(cut_run / "run" / "checkpoints").steps()
    assert steps and max(steps) <= 8
    assert launch(cut_run, "train", "2x2x2") == [0, 0], errors(cut_run)

    expected, found = (dict(np.load(folder / "end.npz")) for folder in (whole_run, cut_run))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert lines(cut_run) == lines(whole_run)
    assert [line["step"] for line in lines(cut_run)] == list(range(1, STEPS + 1))


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the figures of time."""
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if "time" not in k} for line in text.splitlines()]
