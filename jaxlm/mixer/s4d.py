"""S4D: S4 with a diagonal matrix, which trains as well and is a line of code.

    x' = diag(A) x + B u        y = 2 Re(C x) + D u        (zero-order hold or bilinear rule, step dt)

A_n begins as -1/2 + i pi n (lin), -1/2 + i (N/pi) (N/(2n+1) - 1) (inv), -(n+1) (real), or the eigenvalues of the normal
part of HiPPO-LegS (legs). Learned: A (as log(-Re) and -Im), B, C, log dt, D, and the gated projection out. Claimed: as
good as S4 on the Long Range Arena (Gu, Gupta, Goel & Re 2022). `experiments.state_space` shows what it can recall.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec
from jaxlm.core.types import Params, Specs
from jaxlm.mixer.state_space import StateSpace, to_complex
from jaxlm.ops.hippo import legs
from jaxlm.ops.s4_kernel import DISCRETISATIONS, Diagonal, diagonal_kernel, discretise

INITS = ("lin", "inv", "real", "legs")


def diagonal_init(init: str, states: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B, complex128 [N / 2], of one of `INITS`; imaginary parts of A are <= 0."""
    n = np.arange(states // 2)
    if init == "legs":
        made = legs(states)
        return made.eigenvalues, made.b
    frequency = {"lin": np.pi * n, "inv": states / np.pi * (states / (2 * n + 1) - 1), "real": 0.0 * n}[init]
    decay = n + 1.0 if init == "real" else 0.5 + 0.0 * n
    return -decay - 1j * frequency, np.ones(states // 2, complex)


@dataclasses.dataclass(frozen=True)
class FromDiagonal:
    """What `diagonal_init` has of each state: ``log_decay``, ``frequency`` or ``b``."""

    init: str
    part: str

    def __call__(self, key: jax.Array, spec: ParamSpec) -> jax.Array:
        del key
        a, b = diagonal_init(self.init, 2 * spec.shape[1])
        values = {
            "log_decay": np.log(-np.real(a)),
            "frequency": -np.imag(a),
            "b": np.stack((np.real(b), np.imag(b)), -1),
        }
        return jnp.broadcast_to(jnp.asarray(values[self.part], jnp.float32), spec.shape)


@dataclasses.dataclass(frozen=True)
class S4d(StateSpace):
    """S4D.

    Attributes:
      init: of A, ``"lin"``, ``"inv"``, ``"real"`` or ``"legs"``.
      rule: ``"zoh"`` for a zero-order hold, or ``"bilinear"``.
      state, copies, ...: of `StateSpace`.
    """

    paper: ClassVar[str] = "Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models"

    init: str = "lin"
    rule: str = "zoh"

    def check(self) -> None:
        super().check()
        choose("S4d.init", self.init, INITS)
        choose("S4d.rule", self.rule, DISCRETISATIONS)

    def matrices(self, shape: tuple[int, int]) -> Specs:
        return {
            "log_decay": ParamSpec(shape, (None, None), FromDiagonal(self.init, "log_decay"), decay=False),
            "frequency": ParamSpec(shape, (None, None), FromDiagonal(self.init, "frequency"), decay=False),
            "b": ParamSpec((*shape, 2), (None, None, None), FromDiagonal(self.init, "b"), decay=False),
        }

    def system(self, p: Params, c: jax.Array, dt: jax.Array) -> Diagonal:
        each = lambda x: jnp.tile(x.astype(jnp.float32), (c.shape[0] // self.copies, *(1,) * (x.ndim - 1)))
        a = jax.lax.complex(-jnp.exp(each(p["log_decay"])), -each(p["frequency"]))
        return Diagonal(*discretise(a, to_complex(each(p["b"])), dt[:, None], self.rule), c)

    def kernel(self, system: Diagonal, length: int) -> jax.Array:
        return diagonal_kernel(system, length)
