"""mrt5_gate: the gate, soft and hard deletion in attention, the mean gate, and the controller of the rate."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.mask import Bidirectional
from jaxlm.core.types import Context, PositionEncoding, TileBias
from jaxlm.mixer.attend import Held, attend
from jaxlm.model.delete_gate import DeleteGate, compact
from jaxlm.objective.gated_deletion import Control, RateController
from tests.golden.tokenization.data import files

TOLERANCE = 2e-5  # float32, over scores of tens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table(TileBias):
    """The bias of each pair of positions, as the file gives it."""

    values: jax.Array  # float32 [1, H, L, L]

    def tile(self, pos_q: jax.Array, pos_k: jax.Array) -> jax.Array:
        return jax.vmap(lambda q, k: self.values[0][:, q][:, :, k])(
            *jnp.broadcast_arrays(jnp.broadcast_to(pos_q, (len(pos_k), pos_q.shape[1])), pos_k)
        )


class Given(PositionEncoding):
    """A position encoding that is a table."""

    def bias(self, p: Any, q: Any, k: Any, pos_q: Any, pos_k: Any, side: Any = None) -> TileBias:
        return Table(p["values"])


def cases(golden) -> list[dict[str, Any]]:
    found = [case for data in files(golden, "mrt5_gate") for case in data["cases"]]
    assert found
    return found


def read(case: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value, np.float32)
        for name, value in case.items()
        if isinstance(value, list) and name in FIELDS
    }


FIELDS = ("gate_logits", "gate", "q", "key", "value", "position_bias")


def run(arrays: dict[str, Any], positions: Any, segments: Any, gate: Any, softmax: str) -> np.ndarray:
    """Attention of [B, H, L, K] at those positions, with the gate of the keys, as [B, H, L, V]."""
    q, k, v = (jnp.asarray(arrays[name]).transpose(0, 2, 1, 3) for name in ("q", "key", "value"))
    ctx = Context(positions=jnp.asarray(positions), segment_ids=jnp.asarray(segments))
    held = Held(k, v, ctx.positions, (ctx.segment_ids, ctx.segment_ids), None, rotated=False)
    out = attend(
        Given(),
        {"values": jnp.asarray(arrays["position_bias"])},
        q,
        held,
        v,
        ctx,
        mask=Bidirectional(),
        scale=1.0,
        sinks=jnp.zeros(q.shape[2]) if softmax == "softmax1" else None,
        key_bias=None if gate is None else jnp.asarray(gate),
        own=True,
    )
    return np.asarray(out).transpose(0, 2, 1, 3)


def test_the_gate_and_its_mean(golden):
    for case in cases(golden):
        arrays, real = read(case), ~np.asarray(case["pad"])
        gate = DeleteGate(scale=case["k"])
        assert gate.threshold == case["threshold"]
        values = gate.gate(jnp.asarray(arrays["gate_logits"]), jnp.asarray(real))
        np.testing.assert_allclose(values, arrays["gate"], rtol=1e-6, atol=1e-6)
        report = gate.report(values, jnp.asarray(real))
        assert float(report["gate"]) == pytest.approx(case["gate_mean_loss"], rel=1e-6)
        assert float(report["deleted"]) == pytest.approx(case["deleted_fraction_nonpad"], rel=1e-6)


def test_soft_deletion(golden):
    for case in cases(golden):
        arrays, real = read(case), ~np.asarray(case["pad"])
        positions = np.broadcast_to(np.arange(real.shape[1], dtype=np.int32), real.shape)
        for softmax, expected in case["soft_output"].items():
            out = run(arrays, positions, real.astype(np.int32), arrays["gate"], softmax)
            wanted = np.asarray(expected)
            where = np.broadcast_to(real[:, None, :, None], wanted.shape)  # padding asks nothing here
            np.testing.assert_allclose(out[where], wanted[where], rtol=0, atol=TOLERANCE)


def test_hard_deletion(golden):
    for case in cases(golden):
        arrays, wanted = read(case), np.asarray(case["kept_mask"], bool)
        keep = DeleteGate(scale=case["k"]).keeps(jnp.asarray(arrays["gate"]))
        kept = compact(keep, wanted.shape[1])
        np.testing.assert_array_equal(kept.filled, wanted)
        np.testing.assert_array_equal(kept.index, case["kept_positions"])
        np.testing.assert_array_equal(kept.overflow, 0)
        short = {
            name: np.take_along_axis(arrays[name], np.asarray(kept.index)[:, None, :, None], 2)
            for name in ("q", "key", "value")
        }
        for softmax in case["hard_output_per_sequence"][0]:
            out = run({**arrays, **short}, kept.index, wanted.astype(np.int32), None, softmax)
            for row, real, expected in zip(out, wanted, case["hard_output_per_sequence"], strict=True):
                np.testing.assert_allclose(row[:, real], expected[softmax], rtol=0, atol=TOLERANCE)


def test_the_controller(golden):
    found = [data["pi_controller"] for data in files(golden, "mrt5_gate")]
    for case in found:
        controller, state = RateController(case["target"], case["kp"], case["ki"]), Control()
        for rate, expected in zip(case["deletion_rates"], case["coefficients"], strict=True):
            state = controller(state, rate)
            assert float(state.alpha) == pytest.approx(expected, rel=1e-6)
