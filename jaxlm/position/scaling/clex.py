"""CLEX: frequencies that follow a learned differential equation in t, the longer context over that of training.

    x(1) = ln f_m        alpha(t) = 2 t - 1        ln g_m(t) = -(2m/d) ln b - (2m/(d-2)) ln alpha
    dx/dt = act((x + ln g(t)) W_up) W_down + d ln g / dt        f_m(t) = exp x_m(t)

Learned: W_up [d/2, c d] and W_down [c d, d/2], once in the model, through the solver. W_down starts at zeros, and f(t)
so as NTK scaling with alpha = 2 t - 1. In training each row of n tokens is spread at random over n t positions, t
uniform in 1..max_factor; then, as in use, t = ceil(length / original), which finds that t again.
Claimed: contexts of 4 times the training length and more with no loss within (Chen et al. 2024).

The solver keeps y = x - ln g, whose derivative is the learned part alone: what is not learned is exact, and sums of
1500 steps lose nothing. Fixed steps of Runge-Kutta's 3/8-rule, as in the released code. One pass gives f at every whole
t; it is made once in a forward pass, for all layers.
Differences from the released code (DAMO-NLP-SG/CLEX): it spreads rows longer than ``original`` over fractional
positions, where here t stays below max_factor * original / n; and its g has b = 10,000 whatever the model's base, which
``reference_base`` repeats for weights that were trained so. Its option log_scale is the temperature `log_n`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.params import ParamSpec, Uniform, zeros
from jaxlm.core.types import Params, RotaryScaling, Specs
from jaxlm.ops.rotary import inverse_frequencies
from jaxlm.position.scaling.base import check_original

ACTIVATIONS = {"tanh": jnp.tanh, "silu": jax.nn.silu}


@dataclasses.dataclass(frozen=True)
class Clex(RotaryScaling):
    """Continuous length extrapolation.

    Attributes:
      original: the length of training.
      max_factor: the largest t.
      param_factor: c, the hidden width over the rotated channels.
      activation: ``"tanh"`` or ``"silu"``.
      step: of the solver, in t.
      reference_base: b is 10,000 in the equation, as in the released code, and not the model's own base.
    """

    paper: ClassVar[str] = "Chen et al. 2024, CLEX: Continuous Length Extrapolation for Large Language Models"
    scope: ClassVar[str] = "model"
    by_length: ClassVar[bool] = True

    original: int = 2048
    max_factor: int = 16
    param_factor: int = 1
    activation: str = "tanh"
    step: float = 0.01
    reference_base: bool = False

    def check(self) -> None:
        check_original("Clex.original", self.original)
        for name in ("max_factor", "param_factor"):
            value = getattr(self, name)
            require(value >= 1, f"Clex.{name}: expected an integer from 1 on, got {value}")
        choose("Clex.activation", self.activation, ACTIVATIONS)
        require(0 < self.step <= 1, f"Clex.step: expected a number in (0, 1], got {self.step}")

    def params(self, width: int) -> Specs:
        require(width > 2, f"CLEX needs more than 2 rotated channels, got {width}")
        pairs, hidden = width // 2, self.param_factor * width
        bound = hidden**-0.5  # torch's kaiming_uniform_ with a = sqrt(5) takes the last dimension for the fan in
        return {
            "up": ParamSpec((pairs, hidden), (None, None), Uniform(-bound, bound)),
            "down": ParamSpec((hidden, pairs), (None, None), zeros),
        }

    def prepare(self, p: Params, base: jax.Array | float, width: int) -> Params:
        return p if "table" in p else {"table": self.table(p, base, width)}

    def frequencies(self, p: Params, base: jax.Array | float, width: int, length: jax.Array | int | None) -> jax.Array:
        table = p["table"] if "table" in p else self.table(p, base, width)
        length = jnp.asarray(0 if length is None else length, jnp.int32)
        return table[jnp.clip(-(-length // self.original), 1, self.max_factor) - 1]

    def table(self, p: Params, base: jax.Array | float, width: int) -> jax.Array:
        """float32 [max_factor, width / 2]: the frequencies at t = 1, 2, ...; at 1 the plain ones."""
        plain = inverse_frequencies(base, width)[None]
        if self.max_factor == 1:
            return plain
        starts, sizes, each = self._grid()
        y = self._solve(p, base, width, starts, sizes)[each - 1 :: each]
        times = jnp.arange(2, self.max_factor + 1, dtype=jnp.float32)[:, None]
        return jnp.concatenate((plain, jnp.exp(y + self._curve(base, width, times))))

    def at(self, p: Params, base: jax.Array | float, width: int, t: jax.Array | float) -> jax.Array:
        """float32 [width / 2]: the frequencies at any t from 1 to max_factor."""
        starts, sizes, _ = self._grid()
        y = self._solve(p, base, width, starts, jnp.clip(t - starts, 0, sizes))[-1]
        return jnp.exp(y + self._curve(base, width, t))

    def derivative(self, p: Params, base: jax.Array | float, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """dx/dt of log frequencies x [m] at t."""
        width = 2 * x.shape[-1]
        pulled = self._pull(p, x + self._curve(base, width, t))
        return pulled - 4 * jnp.arange(width // 2) / ((width - 2) * (2 * t - 1))

    def draw_training(self, key: jax.Array, positions: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """For a row with n = max(position) + 1: 0, a sorted uniform subset of what lies between, and n t - 1.

        t is uniform in 1..max_factor, or below where n t would be beyond max_factor * original; one for the batch where
        rows are of one length. A row's subset depends on its id and not on other rows.
        """
        time_key, key = jax.random.split(key)
        share = jax.random.uniform(time_key)
        most = self.max_factor * positions.shape[1]

        def row(key: jax.Array, plain: jax.Array) -> jax.Array:
            n = plain.max() + 1
            times = jnp.clip(self.max_factor * self.original // n, 1, self.max_factor)
            last = n * (1 + jnp.minimum((share * times).astype(jnp.int32), times - 1)) - 1
            place = jnp.arange(most)
            inside = (place > 0) & (place < last)
            order = jnp.argsort(jnp.where(inside, jax.random.uniform(key, (most,)), 2.0))
            chosen = jnp.sort(jnp.where(place < n - 2, order, most))
            drawn = jnp.where(plain == 0, 0, jnp.where(plain == n - 1, last, chosen[jnp.maximum(plain - 1, 0)]))
            return drawn.astype(jnp.int32)

        keys = jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(positions.shape[0]) if rows is None else rows)
        return jax.vmap(row)(keys, positions)

    def _grid(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Start and size of every step from t = 1 to max_factor, and how many there are to a whole t; the last of them
        is shorter if the step does not divide 1."""
        each = math.ceil(1 / self.step - 1e-6)
        within = self.step * np.arange(each)
        starts = (np.arange(1, self.max_factor)[:, None] + within).reshape(-1)
        sizes = np.tile(np.minimum(self.step, 1 - within), self.max_factor - 1)
        return starts.astype(np.float32), sizes.astype(np.float32), each

    def _curve(self, base: jax.Array | float, width: int, t: jax.Array | float) -> jax.Array:
        """ln g(t)."""
        m = 2 * jnp.arange(width // 2, dtype=jnp.float32)
        return -(m / width) * jnp.log(self._own(base)) - (m / (width - 2)) * jnp.log(2 * jnp.asarray(t) - 1)

    def _own(self, base: jax.Array | float) -> jax.Array | float:
        return 10_000.0 if self.reference_base else base

    def _pull(self, p: Params, x: jax.Array) -> jax.Array:
        """The learned part, in float32 whatever the precision of matmuls: its errors would add up."""
        product = lambda a, b: jnp.matmul(a, b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return product(ACTIVATIONS[self.activation](product(x, p["up"])), p["down"])

    def _solve(
        self, p: Params, base: jax.Array | float, width: int, starts: np.ndarray, sizes: jax.Array | np.ndarray
    ) -> jax.Array:
        """y = x - ln g after each step, [steps, width / 2]."""
        slope = lambda y, t: self._pull(p, y + 2 * self._curve(base, width, t))

        def step(y: jax.Array, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            t, h = span
            a = slope(y, t)
            b = slope(y + h * a / 3, t + h / 3)
            c = slope(y + h * (b - a / 3), t + 2 * h / 3)
            d = slope(y + h * (a - b + c), t + h)
            y = y + h * (a + 3 * (b + c) + d) / 8
            return y, y

        m = 2 * jnp.arange(width // 2, dtype=jnp.float32)
        first = -(m / width) * (jnp.log(base) - jnp.log(self._own(base)))
        return jax.lax.scan(step, first, (jnp.asarray(starts), jnp.asarray(sizes)))[1]
