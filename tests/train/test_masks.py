"""The model trains with every mask: over 20 steps the loss by block lists is that of the reference implementation."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlm.attention
from jaxlm.attention.combine import And, Heads, Not, Or, PerHead
from jaxlm.attention.mask import (
    Anchor,
    Bidirectional,
    BlockBand,
    Blocks,
    Causal,
    Chunked,
    Diagonals,
    Dilated,
    Globals,
    Lambda,
    Prefix,
    Segments,
    Sinks,
    Strided,
    Window,
)
from jaxlm.core import registry
from jaxlm.core.mask import Mask
from jaxlm.model import decoder
from tests.tiny import VOCABULARY, params_of, tiny, tokens_of

LENGTH, STEPS = 150, 20
IDS = tuple(1 + i // 60 for i in range(LENGTH))

MASKS: list[Mask] = [
    Causal(),
    Bidirectional(),
    Window(20),
    Dilated(5, 4),
    Causal() & Strided(10),
    Chunked(40),
    Window(16) | Sinks(2),
    Causal() | Prefix(30),
    Lambda(20, 3),
    Causal() & Segments(IDS),
    Anchor(tuple(i - 1 for i in IDS)),
    Causal() & (Window(8) | Globals((3, 70))),
    Causal() & (Window(8) | Diagonals((40, 41))),
    Causal() & Blocks(64, ((0,), (1,), (0, 2))),
    Causal() & BlockBand(),
    Causal() & Not(Window(7)),
    PerHead((Heads(1, Causal()), Heads(3, Window(9)))),
]


def test_the_list_has_every_registered_mask() -> None:
    parts = [part for mask in MASKS for part in mask.masks()] + [And(), Or()]
    assert {registry.name_of("mask", part) for part in parts} == set(jaxlm.attention.METHODS)


def losses(mask: Mask, implementation: str) -> np.ndarray:
    spec = tiny({"mask": mask, "position": "rotary", "implementation": implementation}, repeats=1)
    tokens = jnp.asarray(tokens_of(2, LENGTH + 1))
    optimizer = optax.adam(3e-3)

    def loss(params):
        logits = decoder.forward(spec, params, tokens[:, :-1]).logits
        assert logits is not None and logits.shape[-1] == VOCABULARY
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=STEPS)[1]

    return np.asarray(train(params_of(spec)))


@pytest.mark.parametrize(
    "mask",
    [m if i % 4 == 0 else pytest.param(m, marks=pytest.mark.slow) for i, m in enumerate(MASKS)],
    ids=lambda mask: type(mask).__name__,
)
def test_trains_as_with_the_reference(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    want = losses(mask, "reference")
    monkeypatch.setattr(sys.modules["jaxlm.ops.attention"], "FEW_KEYS", 0)  # by block lists, though the row is short
    monkeypatch.setattr("pallas_kernels.block_sparse_attention.xla.blocks", lambda request: (32, 32))
    got = losses(mask, "xla")
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert want[-1] < want[0] - 0.05
