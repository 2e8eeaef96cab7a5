"""The run on one device, with which all the others are compared."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxlm.train.step import TrainState
from tests.dist.runs import Run, run, trainer


@pytest.fixture(scope="session")
def first() -> TrainState:
    """The state before the first step, as numpy: `jax.device_put` starts another mesh from it without a compile."""
    return jax.tree.map(np.asarray, trainer(None).init())


@pytest.fixture(scope="session")
def alone(first) -> Run:
    """The run on one device."""
    return run(trainer(None), jax.tree.map(jax.numpy.array, first))
