"""Learning-rate schedules: warm-up, then a shape.

With t the step after the warm-up and P the peak:

* ``constant``: P.
* ``linear``: P down to ``final_fraction`` P at the last step.
* ``cosine``: half a cosine from P to ``final_fraction`` P (Loshchilov & Hutter, "SGDR", 2017, without restarts).
* ``wsd``: warm-up, stable, decay: P until ``decay`` steps before the end, then linear to ``final_fraction`` P (Hu et
  al., "MiniCPM", 2024).
* ``infinite``: half a cosine over ``cooldown`` steps to ``plateau_fraction`` P, constant there for as long as data
  arrive, then an exponential anneal over the last ``decay`` steps to ``final_fraction`` P (Ibrahim et al., "Simple and
  Scalable Strategies to Continually Pre-train Large Language Models", 2024).

After the last step the value stays where it ended.
"""

from __future__ import annotations

import dataclasses

import optax

from jaxlm.core.config import Spec, require
from jaxlm.core.errors import ConfigError, choose

KINDS = ("constant", "linear", "cosine", "wsd", "infinite")


@dataclasses.dataclass(frozen=True)
class Schedule(Spec):
    """A learning-rate schedule; `build` gives it a number of steps.

    Attributes:
      kind: one of `KINDS`.
      peak: the highest learning rate.
      warmup: steps of linear warm-up from 0.
      decay: steps of the final decay (``wsd``, ``infinite``).
      cooldown: steps from the peak to the plateau (``infinite``).
      plateau_fraction: the plateau as a fraction of the peak (``infinite``).
      final_fraction: the last value as a fraction of the peak (all but ``constant``).

    ``warmup``, ``decay`` and ``cooldown`` are numbers of steps when at least 1, and fractions of the run below that.
    """

    kind: str = "cosine"
    peak: float = 1e-3
    warmup: float = 0.01
    decay: float = 0.2
    cooldown: float = 0.25
    plateau_fraction: float = 0.5
    final_fraction: float = 0.1

    def check(self) -> None:
        choose("schedule", self.kind, KINDS)
        require(self.peak >= 0, f"Schedule.peak: {self.peak} is negative; allowed: 0 or more")
        for name in ("warmup", "decay", "cooldown"):
            value = getattr(self, name)
            require(
                0 <= value < 1 or (value >= 1 and value == int(value)),
                f"Schedule.{name}: {value} is neither a fraction in [0, 1) nor a whole number of steps",
            )
        for name in ("plateau_fraction", "final_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"Schedule.{name}: {value} is not in [0, 1]")
        if self.kind == "infinite":
            positive = self.plateau_fraction > 0 and self.final_fraction > 0
            require(positive, "Schedule: an infinite schedule anneals exponentially, so its fractions must be above 0")

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run of ``total_steps``: int32 step -> float32 learning rate.

        Raises `ConfigError` if the phases do not fit into the run.
        """
        require(total_steps >= 1, f"total_steps: {total_steps} is not a number of steps; allowed: 1 or more")
        warmup = _steps(self.warmup, total_steps)
        peak, final = self.peak, self.peak * self.final_fraction
        body = total_steps - warmup
        phases = {"wsd": ("decay",), "infinite": ("cooldown", "decay")}.get(self.kind, ())
        lengths = [_steps(getattr(self, name), total_steps) for name in phases]
        if warmup + sum(lengths) > total_steps:
            named = " + ".join(("warmup", *phases))
            spelt = " + ".join(map(str, (warmup, *lengths)))
            raise ConfigError(f"Schedule: {named} = {spelt} steps do not fit into a run of {total_steps}")

        pieces: list[tuple[int, optax.Schedule]] = []  # (length, schedule); the last one holds for ever
        if warmup:
            pieces.append((warmup, optax.linear_schedule(0.0, peak, warmup)))
        if self.kind == "linear":
            pieces.append((body, _linear(peak, final, body)))
        elif self.kind == "cosine":
            pieces.append((body, _cosine(peak, final, body)))
        elif self.kind == "wsd":
            pieces.append((body - lengths[0], optax.constant_schedule(peak)))
            pieces.append((lengths[0], _linear(peak, final, lengths[0])))
        elif self.kind == "infinite":
            plateau = peak * self.plateau_fraction
            pieces.append((lengths[0], _cosine(peak, plateau, lengths[0])))
            pieces.append((body - sum(lengths), optax.constant_schedule(plateau)))
            pieces.append((lengths[1], _exponential(plateau, final, lengths[1])))
        else:
            pieces.append((body, optax.constant_schedule(peak)))
        ends = [sum(length for length, _ in pieces[: i + 1]) for i in range(len(pieces) - 1)]
        return optax.join_schedules([schedule for _, schedule in pieces], ends)


def _steps(value: float, total: int) -> int:
    return round(value * total) if value < 1 else int(value)


# A phase of no length is the value it would end at: optax would warn, or divide by zero.
def _linear(start: float, end: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(start, end, steps) if steps else optax.constant_schedule(end)


def _cosine(start: float, end: float, steps: int) -> optax.Schedule:
    if not steps or not start:
        return optax.constant_schedule(end)
    return optax.cosine_decay_schedule(start, steps, alpha=end / start)


def _exponential(start: float, end: float, steps: int) -> optax.Schedule:
    if not steps or not start:
        return optax.constant_schedule(end)
    return optax.exponential_decay(start, steps, end / start, end_value=end)
