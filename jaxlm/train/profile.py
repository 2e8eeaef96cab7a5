"""``--profile=10:15``: a trace of a few steps, for XProf or Perfetto, in ``workdir/profile``.

    with Profile(workdir, "10:15") as profile:
        for step in range(start, total):
            with profile.step(step, pending=state):
                state = train_step(state, batch)

The first steps compile; trace later ones. Steps are named in the trace, and `jax.named_scope`s inside them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxlm.core.errors import ConfigError


def parse_range(text: str) -> tuple[int, int] | None:
    """``"10:15"`` as (10, 15): the steps 10 to 14; None for ``""``. Raises `ConfigError` for anything else."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if first.isdecimal() and last.isdecimal() and int(first) < int(last):
        return int(first), int(last)
    raise ConfigError(f"profile: {text!r} is not a range of steps; write first:end, such as '10:15', or '' for none")


class Profile:
    """Traces the steps of a range; does nothing for the range ``""``."""

    def __init__(self, workdir: str | os.PathLike[str], steps: str = ""):
        self._range = parse_range(steps)
        self._folder = Path(workdir) / "profile"
        self._on = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, step: int, pending: Any = None) -> Iterator[None]:
        """Around one step; ``pending`` are arrays still being computed, waited for before a trace starts or stops."""
        if self._range is None:
            yield
            return
        first, end = self._range
        if first <= step < end and not self._on:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif step >= end and self._on:
            jax.block_until_ready(pending)
            self._stop()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
