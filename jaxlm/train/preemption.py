"""SIGTERM as a request: the loop saves and leaves, instead of dying in the middle of a step.

Clusters that take a machine back send SIGTERM some time (often 30 s) before SIGKILL:

    with Preemption() as preemption:
        for step in ...:
            ...
            if preemption.reached(step):
                checkpointer.save(step, ...)
                checkpointer.close()
                raise SystemExit(preemption.EXIT_CODE)

In a run of several processes a signal to any of them must stop all at the same step. jax's preemption service does that
(`jax.experimental.multihost_utils.reached_preemption_sync_point`); it listens for SIGTERM itself, so no handler is set
here. Where it is switched off, the processes exchange a flag at every step.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, ClassVar

import jax
from jax.experimental import multihost_utils

from jaxlm.train import agreement

log = logging.getLogger(__name__)


class Preemption:
    """Watches for SIGTERM while entered, and puts the former handler back.

    Only the main thread can receive signals; entered on another one, this watches nothing.
    """

    EXIT_CODE: ClassVar[int] = 128 + signal.SIGTERM  # 143, what a shell reports for a process that SIGTERM ended

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._former: Any = None
        self._installed = False
        self._service = False

    def reached(self, step: int) -> bool:
        """Whether to save and leave now. All processes call this at every step, and all get the same answer.

        Args:
          step: the step just done; it must grow from call to call.
        """
        if self._service:
            return multihost_utils.reached_preemption_sync_point(step)
        return agreement.anywhere(self._requested.is_set())

    def __enter__(self) -> Preemption:
        self._service = jax.process_count() > 1 and getattr(jax.config, "jax_enable_preemption_service", False)
        self._installed = not self._service and threading.current_thread() is threading.main_thread()
        if self._installed:
            self._former = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._former is None else self._former)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self._requested.is_set():
            log.warning("SIGTERM received: saving and leaving after this step")
        self._requested.set()
