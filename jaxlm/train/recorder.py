"""Metrics of the steps: fetched only where a line is due, one step late, so the device never waits for the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax

from jaxlm.train.ahead import ahead
from jaxlm.train.config import TrainConfig
from jaxlm.train.metrics import Writer


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every so many steps (0: never) and after the last one is done after ``step`` steps."""
    return step == last or (every > 0 and step % every == 0)


class Recorder:
    """Writes the metrics of log steps, fetched when a later step is already under way, and watches for skipped steps.

    Args:
      writer: where to; None on all processes but the first.
      config: of the run.
      places: of a batch, for the rates.
      speed: from tokens per second to the utilisation of the chips, or to None.
    """

    def __init__(self, writer: Writer | None, config: TrainConfig, places: int, speed: Callable[[float], float | None]):
        self._writer, self._config, self._places, self._speed = writer, config, places, speed
        self._waiting: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._latest: jax.Array | None = None
        self._since: float | None = None  # None until the step that compiles is over
        self._steps = 0
        self._ahead = ahead()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Notes a step that was dispatched. Raises `FloatingPointError` if the run is stuck."""
        if self._waiting and due(self._waiting[-1][0], self._config.log_every, self._config.steps):
            self.flush()
        self._waiting.append((step, metrics))
        if len(self._waiting) > self._ahead:
            self._latest = jax.block_until_ready(self._waiting[-1 - self._ahead][1])["loss"]
        if self._since is None:
            self.restart_clock()
        else:
            self._steps += 1

    def flush(self) -> None:
        """Fetches and writes all that is due. Raises `FloatingPointError` if the run is stuck."""
        waiting, self._waiting = self._waiting, []
        for step, metrics in waiting:
            shown = due(step, self._config.log_every, self._config.steps)
            values = jax.device_get(dict(metrics) if shown else {"skipped_in_a_row": metrics["skipped_in_a_row"]})
            if shown:
                self._latest = values["loss"]
                self.write(step, {name: float(value) for name, value in values.items()} | self._rates())
            self._config.optimizer.stop_if_stuck(int(values["skipped_in_a_row"]), step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None and values:
            self._writer.write(step, values)

    def latest_loss(self) -> float:
        """Of the newest step that is known to be over, or the first one."""
        return float(self._waiting[0][1]["loss"] if self._latest is None else self._latest)

    def restart_clock(self) -> None:
        """Leaves out of the rates what came before: compiling, evaluating, saving."""
        self._since, self._steps = time.monotonic(), 0

    def _rates(self) -> dict[str, float]:
        steps, since = self._steps, self._since
        if since is None or steps == 0:
            return {}
        seconds = time.monotonic() - since
        self.restart_clock()
        rate = steps * self._places / seconds
        utilisation = self._speed(rate)
        rates = {"time/seconds_per_step": seconds / steps, "time/tokens_per_second": rate}
        return rates if utilisation is None else rates | {"time/mfu": utilisation}
