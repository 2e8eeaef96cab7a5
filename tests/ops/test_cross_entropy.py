"""Cross-entropy: pieces = whole = optax, the golden vectors of two independent implementations, weights of 0."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.ops.cross_entropy import cross_entropy, token_losses


def draw(batch: int = 2, length: int = 7, width: int = 5, vocabulary: int = 11):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((width, vocabulary)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocabulary, (batch, length)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.2, 2.0, (batch, length)) * (rng.random((batch, length)) < 0.8), jnp.float32)
    return hidden, kernel, targets, weights


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("piece", [2**23, 60, 1])  # the whole, rows cut unevenly, one place at a time
def test_pieces_equal_optax(piece: int, z_loss: float) -> None:
    hidden, kernel, targets, weights = draw()

    def ours(hidden, kernel):
        return cross_entropy(hidden, lambda h: h @ kernel, targets, weights, z_loss=z_loss, piece=piece)

    def theirs(hidden, kernel):
        logits = hidden @ kernel
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        loss = loss + z_loss * jax.nn.logsumexp(logits, -1) ** 2
        return (loss * weights).sum(), (weights * (logits.argmax(-1) == targets)).sum()

    got, got_grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, kernel)
    want, want_grads = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(hidden, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for g, w in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6)


def test_pieces_hold_no_more_than_asked() -> None:
    hidden, kernel, targets, weights = draw(batch=4, length=64, vocabulary=512)

    def widest(piece: int) -> int:
        f = jax.grad(lambda h: cross_entropy(h, lambda x: x @ kernel, targets, weights, piece=piece)[0])
        return jax.jit(f).lower(hidden).compile().memory_analysis().temp_size_in_bytes

    assert widest(4 * 4 * 512) < widest(2**23) / 4


@pytest.mark.parametrize("piece", [2**23, 30])
def test_a_place_of_weight_zero_may_hold_anything(piece: int) -> None:
    hidden, kernel, targets, weights = draw()
    dirty = jnp.where(weights[..., None] > 0, hidden, 1e30)

    def loss(hidden):
        return cross_entropy(hidden, lambda h: h @ kernel, targets, weights, z_loss=1e-4, piece=piece)[0]

    value, grad = jax.value_and_grad(loss)(dirty)
    np.testing.assert_allclose(value, loss(hidden), rtol=1e-6)
    assert np.isfinite(grad).all() and (grad[weights == 0] == 0).all() and (grad[weights > 0] != 0).any()


def test_z_loss_golden(golden: Path) -> None:
    data = np.load(golden / "training" / "ce_plus_zreg.npz")
    logits = jnp.asarray(data["in_logits"], jnp.float32)
    valid = data["in_targets"] >= 0  # the others are ignored
    targets, z_loss = jnp.asarray(np.where(valid, data["in_targets"], 0), jnp.int32), float(data["arg_coef"])

    def total(logits):
        weights = jnp.asarray(valid, jnp.float32)
        return cross_entropy(logits, lambda x: x, targets, weights, z_loss=z_loss)[0] / valid.sum()

    losses, lse = token_losses(logits, targets)
    np.testing.assert_allclose(losses[valid].mean(), data["out_ce"], rtol=1e-5)
    np.testing.assert_allclose((lse[valid] ** 2).mean(), data["out_z"], rtol=1e-5)
    np.testing.assert_allclose(total(logits), data["out_total"], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(total)(logits), data["grad_logits"], rtol=1e-4, atol=1e-7)


def test_cut_cross_entropy_golden(golden: Path) -> None:
    """Every variant of the file: ``sc<soft cap>_b<bias>_s<shift>_<reduction>``; the ignored index is a weight of 0.

    Means are taken of the whole, sums of pieces.
    """
    data = np.load(golden / "training" / "cut_cross_entropy.npz")
    names = [key.removeprefix("out_loss_") for key in data if key.startswith("out_loss_")]
    assert names
    for name in names:
        cap, bias, shift, reduction = (part.lstrip("scb") for part in name.split("_"))
        cap, shift = float(cap), int(shift)
        piece = 2**23 if reduction == "mean" else 2 * data["in_c"].shape[0]

        def loss(e, c, b, cap=cap, bias=bias, shift=shift, reduction=reduction, piece=piece):
            def unembed(h):
                logits = h @ c.T + (b if bias == "1" else 0.0)
                return cap * jnp.tanh(logits / cap) if cap else logits

            targets = data["in_targets"][:, shift:]
            valid = targets != data["arg_ignore_index"]
            hidden = e[:, : e.shape[1] - shift]
            total, _ = cross_entropy(
                hidden, unembed, jnp.where(valid, targets, 0), jnp.asarray(valid, jnp.float32), piece=piece
            )
            return total / valid.sum() if reduction == "mean" else total

        inputs = [jnp.asarray(data[f"in_{key}"], jnp.float32) for key in ("e", "c", "bias")]
        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)
        np.testing.assert_allclose(value, data[f"out_loss_{name}"], rtol=1e-5)
        for key, grad in zip(("e", "c", "bias"), grads, strict=True):
            if f"grad_{key}_{name}" in data:
                np.testing.assert_allclose(grad, data[f"grad_{key}_{name}"], rtol=1e-4, atol=1e-5)
