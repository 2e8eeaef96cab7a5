"""S4: each feature goes through a state space of its own, whose matrix is HiPPO-LegS: diagonal less a rank-1 product.

    x' = (diag(lambda) - P P^*) x + B u        y = Re(C x) + D u        (bilinear rule, step dt)

Learned: lambda (as log(-Re) and -Im), P, B, C, log dt, D, and the gated projection out. Parameters know no length:
kernels of any length are had from them (`jaxlm.ops.s4_kernel`). Claimed: dependencies over 16,000 tokens (Long Range
Arena, Path-X), trained as a convolution and run as a recurrence (Gu, Goel & Re 2022).
`experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Params, Specs
from jaxlm.mixer.state_space import StateSpace, to_complex
from jaxlm.ops.hippo import legs
from jaxlm.ops.s4_kernel import Dplr, dplr_kernel

_MOST = 2.0  # of the imaginary parts of B at the start, as in the authors' code


@dataclasses.dataclass(frozen=True)
class FromLegs:
    """What HiPPO-LegS has of each state: ``log_decay``, ``frequency``, ``p`` or ``b``."""

    part: str

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        made = legs(2 * spec.shape[1])
        values = {
            "log_decay": np.log(-np.real(made.eigenvalues)),
            "frequency": -np.imag(made.eigenvalues),
            "p": np.stack((np.real(made.p), np.imag(made.p)), -1),
            "b": np.stack((np.real(made.b), np.clip(np.imag(made.b), -_MOST, _MOST)), -1),
        }
        return jnp.broadcast_to(jnp.asarray(values[self.part], jnp.float32), spec.shape)


@dataclasses.dataclass(frozen=True)
class S4(StateSpace):
    """S4, with the fields of `StateSpace`."""

    paper: ClassVar[str] = "Gu, Goel & Re 2022, Efficiently Modeling Long Sequences with Structured State Spaces"

    def matrices(self, shape: tuple[int, int]) -> Specs:
        one, two = (None, None), (None, None, None)
        return {
            "log_decay": ParamSpec(shape, one, FromLegs("log_decay"), decay=False),
            "frequency": ParamSpec(shape, one, FromLegs("frequency"), decay=False),
            "p": ParamSpec((*shape, 2), two, FromLegs("p"), decay=False),
            "b": ParamSpec((*shape, 2), two, FromLegs("b"), decay=False),
        }

    def system(self, p: Params, c: jax.Array, dt: jax.Array) -> Dplr:
        each = lambda x: jnp.tile(x.astype(jnp.float32), (c.shape[0] // self.copies, *(1,) * (x.ndim - 1)))
        lambda_ = jax.lax.complex(-jnp.exp(each(p["log_decay"])), -each(p["frequency"]))
        return Dplr(lambda_, to_complex(each(p["p"])), to_complex(each(p["b"])), c, dt)

    def kernel(self, system: Dplr, length: int) -> jax.Array:
        return dplr_kernel(system, length)
