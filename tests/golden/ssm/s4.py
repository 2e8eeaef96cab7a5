"""S4 and S4D: HiPPO matrices, kernels by every way there is to them, and the same systems token by token."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.fft_conv import fft_conv
from jaxlm.ops.hippo import legs, legs_matrices
from jaxlm.ops.s4_kernel import (
    Diagonal,
    Dplr,
    advance,
    diagonal_kernel,
    discretise,
    dplr_kernel,
    dplr_matrices,
    generating_kernel,
)
from tests.golden.ssm.data import close, files


def test_hippo(golden):
    for data in files(golden, "hippo_legs"):
        size = len(data["A"])
        for ours, name in zip(legs_matrices(size), ("A", "B", "P"), strict=True):
            np.testing.assert_allclose(ours, data[name], rtol=1e-13)
        made = legs(size)
        np.testing.assert_allclose(made.eigenvalues, data["Lambda_half"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(np.abs(made.p), data["absP_half"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(np.abs(made.b), data["absB_half"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(made.p.conj() * made.b, data["PB_half"], rtol=0, atol=1e-10)
        both = np.concatenate((made.basis, made.basis.conj()), 1)
        whole = lambda x: np.concatenate((x, x.conj()))
        low = np.outer(whole(made.p), whole(made.p).conj())
        again = both @ (np.diag(whole(made.eigenvalues)) - low) @ both.conj().T
        np.testing.assert_allclose(again, data["A"], rtol=0, atol=1e-10)


def test_s4_with_all_pairs(golden):
    """In float64: the generating function, Abar and Bbar by Woodbury's identity, and the recurrence they make."""
    for data in files(golden, "s4_dplr_full"):
        length, step = int(data["arg_L"]), np.float64(data["arg_step"])
        with jax.enable_x64(True):
            lambda_, p, b = (jnp.asarray(data[f"in_{name}"]) for name in ("Lambda", "P", "B"))
            kernel = generating_kernel(lambda_, p, b, jnp.asarray(data["in_C_tilde"]).conj(), jnp.asarray(step), length)
            np.testing.assert_allclose(kernel, data["out_K"], rtol=0, atol=1e-10)
            a_bar, b_bar = dplr_matrices(lambda_, p, b, jnp.asarray(step))
            np.testing.assert_allclose(a_bar, data["out_Abar"], rtol=0, atol=1e-10)
            np.testing.assert_allclose(b_bar, data["out_Bbar"][:, 0], rtol=0, atol=1e-10)
            c = np.asarray(data["in_C_tilde"]).conj() @ np.linalg.inv(
                np.eye(len(a_bar)) - np.linalg.matrix_power(np.asarray(a_bar), length)
            )
            np.testing.assert_allclose(c, data["out_Cbar"][0], rtol=0, atol=1e-10)
            u = jnp.asarray(data["in_u"])
            y = fft_conv(u[None, :, None], kernel[:, None])[0, :, 0]
            np.testing.assert_allclose(y, data["out_y"], rtol=0, atol=1e-10)


def test_s4_with_half_the_pairs(golden):
    for data in files(golden, "s4_dplr_half"):
        length = int(data["arg_L"])
        system = Dplr(*(jnp.asarray(data[f"in_{name}"]) for name in ("Lambda", "P", "B", "C", "dt")))
        kernel = jax.jit(dplr_kernel, static_argnums=1)(system, length)
        close(kernel.T, data["out_K_dense_f64"], name="powers")
        both = lambda x: jnp.concatenate((x, x.conj()), -1)
        tilde = jnp.asarray(data["in_C_tilde"])
        parts = (both(x) for x in (system.lambda_, system.p, system.b, tilde))
        close(generating_kernel(*parts, system.dt, length), data["out_K_dense_f64"], name="generating function")
        u = jnp.moveaxis(jnp.asarray(data["in_u"]), 1, 2)
        close(jnp.moveaxis(fft_conv(u, kernel), 1, 2), data["out_y"], name="convolution")
        y, _ = jax.jit(functools.partial(advance, states=system.b.shape[-1], chunk=7))(system, u)
        close(jnp.moveaxis(y, 1, 2), data["out_y"], name="recurrence")


@pytest.mark.parametrize("init", ["lin", "inv", "real", "legs"])
def test_s4d(golden, init):
    for data in files(golden, f"s4d_{init}"):
        a, b, c = (jnp.asarray(data[f"in_{name}"]) for name in "ABC")
        system = Diagonal(*discretise(a, b, jnp.asarray(data["in_dt"])[:, None], str(data["arg_disc"])), c)
        kernel = jax.jit(diagonal_kernel, static_argnums=1)(system, int(data["arg_L"]))
        close(kernel.T, data["out_K_f64"], name="kernel")
        u, skip = jnp.moveaxis(jnp.asarray(data["in_u"]), 1, 2), jnp.asarray(data["in_D"])
        close(jnp.moveaxis(fft_conv(u, kernel) + skip * u, 1, 2), data["out_y"], name="convolution")
        y, last = jax.jit(functools.partial(advance, states=b.shape[-1], chunk=16))(system, u)
        close(jnp.moveaxis(y + skip * u, 1, 2), data["out_y"], name="recurrence")
        close(last, data["out_final_state"], name="state")
