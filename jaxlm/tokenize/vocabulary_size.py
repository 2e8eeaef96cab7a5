"""How large a vocabulary should be (Tao et al. 2024, Scaling Laws with Vocabulary: Larger Models Deserve Larger ...).

Units: N non-vocabulary parameters, V ids, d embedding width, V d vocabulary parameters (input and output shared), H
characters, D = f(V) H tokens, F = 6 (N + V d) D FLOPs. Losses of different V are compared unigram-normalised,

    L_u = mean of -ln p(token | context) + ln p_unigram(token)          nats a token, negative for a model that learned

Three laws for the best V, each from parameters N at the compute that the first law gives them:

    1  isoFLOPs     N = exp(-2.4846510) F^0.5,  V d = exp(-1.5890313) F^0.4163623
    2  derivative   V d = 3145728 (N / 33e6)^0.8353974, the exponent that of the roots of dF/dV (`derivative_root`)
    3  parametric   L_u = -E + A1/N^a1 + A2/(V d)^a2 + B/D^b with a1 = b; dL_u/dV = 0 at fixed F, N and d

The third is a `Law`, and `fit` finds one from measurements. Its published coefficients belong to D = H f(V / 1000): the
authors' program divides V by 1000 before it counts tokens. On their 1054 points from 2.18e17 FLOPs the law is then off
by 0.09 nats (rms), with D = H f(V) by 0.53; and `fit` finds it again from them (a2 0.664, b 0.445; best V for N = 7 B
59.5 k). The best V of law 3 needs no H: D is F / 6 (N + V d).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError

WIDTHS = (
    (50e6, 512), (200e6, 768), (500e6, 1024), (1e9, 1536), (2e9, 2048), (5e9, 3200), (10e9, 4096), (20e9, 5120),
    (50e9, 6048), (100e9, 8192), (200e9, 12288), (500e9, 16384), (1e12, 20480), (math.inf, 24576),
)  # fmt: skip
_CAP = 200_000  # beyond it the quadratic would rise again


def tokens_per_char(vocab: ArrayLike) -> Any:
    """f(V), tokens a character of an English BPE vocabulary of V ids: a quadratic in ln V, constant from 200,000 on."""
    size = np.asarray(vocab, float)
    require((size > 0).all(), f"vocab: expected positive sizes, got {size.min()}")
    log = np.log(np.minimum(size, _CAP))
    return 0.00639222 * log**2 - 0.15811069 * log + 1.20470122


def embedding_size(non_vocab_params: float) -> int:
    """The width d that models of N non-vocabulary parameters have in the paper."""
    require(non_vocab_params > 0, f"non_vocab_params: expected a positive number, got {non_vocab_params}")
    return next(width for most, width in WIDTHS if non_vocab_params <= most)


def flops(non_vocab_params: ArrayLike, vocab: ArrayLike, width: ArrayLike, characters: ArrayLike) -> Any:
    """F of training on H characters: 6 (N + V d) f(V) H."""
    parameters = np.asarray(non_vocab_params, float) + np.asarray(vocab, float) * np.asarray(width, float)
    return 6 * parameters * tokens_per_char(vocab) * np.asarray(characters, float)


def flops_for(non_vocab_params: float) -> float:
    """The compute at which N is the best size, by law 1."""
    require(non_vocab_params > 0, f"non_vocab_params: expected a positive number, got {non_vocab_params}")
    return (non_vocab_params / math.exp(-2.4846510161625193)) ** 2


def by_isoflops(budget: float) -> float:
    """Law 1: the best number of vocabulary parameters V d for a budget of F FLOPs."""
    require(budget > 0, f"budget: expected positive FLOPs, got {budget}")
    return math.exp(-1.589031299255507) * budget**0.4163622634135234


def by_derivative(
    non_vocab_params: float, gamma: float = 0.8353974035228025, known: tuple[float, float] = (33e6, 3_145_728.0)
) -> float:
    """Law 2: the best number of vocabulary parameters V d for N, from the best one ``known`` (N, V d) of a small model.

    Where dF/dV = 0 at a fixed number of characters, V d follows N^gamma (the authors' fit of their roots); what is
    best at one size is measured, which fixes the factor.
    """
    require(non_vocab_params > 0, f"non_vocab_params: expected a positive number, got {non_vocab_params}")
    return known[1] * (non_vocab_params / known[0]) ** gamma


def derivative_root(non_vocab_params: float, width: float | None = None) -> float:
    """The V at which dF/dV = 0 for N, d and a fixed number of characters: fewest operations to read a text.

    F is proportional to (N + V d) f(V), so the root is where d f + (N + V d) f' changes its sign, found by bisection in
    ln V; 200,000, from where f is constant, if it does not before. Over the authors' sizes (33 M to 1.13 G, d theirs)
    V d follows N^0.832, which they give as 0.835.

    Args:
      non_vocab_params: N.
      width: d; by default the paper's for that N.
    """
    require(non_vocab_params > 0, f"non_vocab_params: expected a positive number, got {non_vocab_params}")
    d = embedding_size(non_vocab_params) if width is None else width
    require(d > 0, f"width: expected a positive number, got {d}")
    low, high = 0.0, math.log(_CAP)
    for _ in range(64):
        log_v = (low + high) / 2
        v_slope = 2 * 0.00639222 * log_v - 0.15811069  # V f'(V)
        rising = d * tokens_per_char(math.exp(log_v)) + (non_vocab_params / math.exp(log_v) + d) * v_slope > 0
        low, high = (low, log_v) if rising else (log_v, high)
    return math.exp(high)


def unigram_normalised_loss(nats: ArrayLike, ids: ArrayLike, counts: ArrayLike) -> float:
    """L_u: the mean over tokens of their loss and the log of their share of a corpus; comparable between vocabularies.

    Args:
      nats: -ln p(token | context), [n].
      ids: the tokens, [n].
      counts: how often each id occurs in the training text, [V].

    Raises:
      ConfigError: shapes that do not fit, or an id that the text never had (its share would be 0).
    """
    loss, tokens, seen = np.asarray(nats, float), np.asarray(ids), np.asarray(counts, float)
    require(loss.shape == tokens.shape and loss.ndim == 1, f"nats and ids: one each, got {loss.shape}, {tokens.shape}")
    require(loss.size, "nats: the mean of no tokens is undefined")
    require(tokens.min() >= 0 and tokens.max() < len(seen), f"ids: expected 0..{len(seen) - 1}, got {tokens.max()}")
    missing = tokens[seen[tokens] <= 0]
    require(not missing.size, f"counts: token {missing[:1]} never occurs, so it has no unigram probability")
    return float(np.mean(loss + np.log(seen[tokens] / seen.sum())))


@dataclasses.dataclass(frozen=True)
class Law(Spec):
    """Law 3; the defaults are the published coefficients. N and V d count in millions, D in thousands of millions."""

    e: float = 5.5327847
    a1: float = 1.8313852
    a2: float = 0.1958424
    b: float = 2.1241123
    alpha2: float = 0.6707375
    beta: float = 0.4466063  # alpha1 too

    def check(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"Law.{field.name}: expected a positive number, got {value}")

    def loss(self, non_vocab_params: ArrayLike, vocab: ArrayLike, width: ArrayLike, tokens: ArrayLike) -> Any:
        """L_u of models of N, V and d that were trained on D tokens."""
        n, vd, d = _scaled(non_vocab_params, vocab, width, tokens)
        return -self.e + self.a1 / n**self.beta + self.a2 / vd**self.alpha2 + self.b / d**self.beta

    def best_vocab(self, non_vocab_params: float, width: float | None = None, budget: float | None = None) -> float:
        """The V of least L_u when F FLOPs are spent on N parameters and a vocabulary of width d.

        A larger V takes tokens away, D = F / 6 (N + V d). The derivative changes its sign once, since
        a2 + 1 > 1 - b, and its root is found by bisection in ln V.

        Args:
          non_vocab_params: N.
          width: d; by default the paper's for that N.
          budget: F; by default what law 1 says N deserves.
        """
        n = non_vocab_params / 1e6
        d = (embedding_size(non_vocab_params) if width is None else width) / 1e6  # V d in millions
        f = (flops_for(non_vocab_params) if budget is None else budget) / 1e15
        require(n > 0 and d > 0 and f > 0, "best_vocab: expected positive parameters, width and budget")
        gain = math.log(self.alpha2 * self.a2) - self.alpha2 * math.log(d)
        price = math.log(self.beta * self.b * d) + self.beta * math.log(6 / f)

        def slope(log_v: float) -> float:  # ln of what a larger V costs over what it gains
            rest = math.log(n + math.exp(log_v) * d)
            return price + (self.beta - 1) * rest - gain + (self.alpha2 + 1) * log_v

        low, high = -50.0, 150.0
        while high - low > 1e-13 * max(1.0, abs(high)):
            middle = (low + high) / 2
            if middle in (low, high):
                break
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        return math.exp(high)


class Points(NamedTuple):
    """Measured losses, five arrays [n]."""

    non_vocab_params: NDArray[np.float64]
    vocab: NDArray[np.float64]
    width: NDArray[np.float64]
    tokens: NDArray[np.float64]
    loss: NDArray[np.float64]  # L_u


# The authors' grid of starts: ln A1, ln A2, ln B, ln E, a2, b; 486 in all.
STARTS = ((0.0, 2.5, 5.0), (0.0, 2.5, 5.0), (0.0, 2.5, 5.0), (0.0, 2.0), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0))


def fit(points: Points, starts: Sequence[Sequence[float]] = STARTS, delta: float = 1e-3, runs: int = 32) -> Law:
    """The `Law` of least summed Huber loss of the residuals, over quasi-Newton runs from a grid of starts.

    As the authors do, ln A1, ln A2, ln B, ln E, a2 and b are free and 0.1 < a2, b < 1; points of small runs (theirs:
    below 2.18e17 FLOPs) are the caller's to leave out. They run L-BFGS from all 486 starts, with differences for
    gradients; here the gradient is exact, the ``runs`` best starts are run, and with six parameters the memory need not
    be limited: BFGS, 56 to 358 evaluations a run and 0.01 to 0.07 s of one core for 300 points (scipy's L-BFGS-B 113 to
    169 and 0.06 to 0.8 s, most of it waiting threads).

    Args:
      points: measurements; at least 6, of more than one N, V d and D.
      starts: values of the six parameters whose product is the grid.
      delta: where Huber's loss turns from quadratic to linear, nats.
      runs: how many starts are run, those of least loss.

    Raises:
      ConfigError: too few or unusable points, or no run that ends within the bounds.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise ConfigError("fitting a vocabulary law needs scipy: pip install 'jaxlm[tokenize]'") from None
    n, vd, d, target = np.broadcast_arrays(*_scaled(*points[:4]), np.asarray(points.loss, float))
    require(target.ndim == 1 and target.size >= 6, f"points: expected at least 6 of them, got {target.shape}")
    require(np.isfinite(target).all(), "points.loss: not all numbers are finite")
    require(len(starts) == 6, f"starts: expected values of 6 parameters, got {len(starts)}")
    logs = np.stack([np.log(n), np.log(vd), np.log(d)])
    for name, values in zip(("non_vocab_params", "vocab x width", "tokens"), logs, strict=True):
        require(np.ptp(values) > 0, f"points: all have the same {name}, so its exponent is undetermined")

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        terms = np.exp(np.stack([x[0] - x[5] * logs[0], x[1] - x[4] * logs[1], x[2] - x[5] * logs[2]]))
        e = np.exp(x[3])
        residual = terms.sum(0) - e - target
        size = np.abs(residual)
        value = np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2)).sum()
        g = np.clip(residual, -delta, delta)
        by_term, by_log = (terms * g).sum(1), (terms * g * logs).sum(1)
        gradient = [by_term[0], by_term[1], by_term[2], -e * g.sum(), -by_log[1], -by_log[0] - by_log[2]]
        return value / delta, np.array(gradient) / delta

    grid = sorted((np.array(start) for start in itertools.product(*starts)), key=lambda start: objective(start)[0])
    with np.errstate(over="ignore", invalid="ignore"):  # a line search may try a long step
        found = [
            minimize(objective, start, jac=True, method="BFGS", options={"maxiter": 3000}) for start in grid[:runs]
        ]
    inside = [run for run in found if np.isfinite(run.fun) and 0.1 < min(run.x[4:]) and max(run.x[4:]) < 1]
    require(inside, "fit: no run ended with exponents between 0.1 and 1; the points do not determine this law")
    best = min(inside, key=lambda run: run.fun).x
    a1, a2, b, e = (float(x) for x in np.exp(best[:4]))
    return Law(e=e, a1=a1, a2=a2, b=b, alpha2=float(best[4]), beta=float(best[5]))


def _scaled(
    non_vocab_params: ArrayLike, vocab: ArrayLike, width: ArrayLike, tokens: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """N and V d in millions, D in thousands of millions."""
    n, v, d, t = (np.asarray(x, float) for x in (non_vocab_params, vocab, width, tokens))
    for name, values in (("non_vocab_params", n), ("vocab", v), ("width", d), ("tokens", t)):
        require((values > 0).all(), f"{name}: expected positive numbers")
    return n / 1e6, v * d / 1e6, t / 1e9
