"""Decay by key channel: against a loop in float64, by chunks of any size, with documents, states and extreme decays."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.ops.vector_decay import vector_decay
from tests.ops.recurrences import *  # noqa: F403
from tests.ops.recurrences import Op


def run(x, **options):
    return vector_decay(x["q"], x["k"], x["v"], x["log_decay"], bonus=x.get("bonus"), **options)


def after(state, x):
    state = np.exp(x["log_decay"])[:, None] * state + np.outer(x["k"], x["v"])
    return x["q"] @ state, state


def before(state, x):
    new = np.outer(x["k"], x["v"])
    return x["q"] @ (state + x["bonus"][:, None] * new), np.exp(x["log_decay"])[:, None] * state + new


SHAPES = {"q": "BLGK", "k": "BLGK", "v": "BLHV", "log_decay": "BLHK"}


@pytest.fixture(
    scope="module",
    params=[Op("gla", run, after, SHAPES), Op("rwkv6", run, before, {**SHAPES, "bonus": "HK"})],
    ids=lambda op: op.name,
)
def op(request):
    return request.param
