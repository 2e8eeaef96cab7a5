"""Several processes as one computer: each runs the same program, and `jax.devices` then lists the devices of all.

A process learns its place from three environment variables, or from the cluster that started it (Slurm, Open MPI,
Kubernetes, Cloud TPU):

    JAXLM_COORDINATOR=10.0.0.1:8476 JAXLM_PROCESS_COUNT=2 JAXLM_PROCESS_ID=0 python -m experiments.train_lm ...
    JAXLM_COORDINATOR=auto srun --ntasks=16 python -m experiments.train_lm ...

The cluster is asked only where ``auto`` says so: a shell inside a Slurm allocation looks like one of many processes,
and a program started there by hand would wait for the others for ever.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from jaxlm.core.config import require

COORDINATOR, COUNT, ID = "JAXLM_COORDINATOR", "JAXLM_PROCESS_COUNT", "JAXLM_PROCESS_ID"


def initialize(environment: Mapping[str, str] | None = None) -> None:
    """Joins the other processes; call it before anything touches a device. Does nothing where the variables are unset.

    Args:
      environment: in place of `os.environ`. ``JAXLM_COORDINATOR`` is the host:port that process 0 opens, or ``auto``;
        ``JAXLM_PROCESS_COUNT`` and ``JAXLM_PROCESS_ID`` go with host:port.

    Raises:
      ConfigError: variables that are missing or do not fit, before any waiting.
      RuntimeError: devices were used before, or the others did not come (of `jax.distributed.initialize`).
    """
    given = os.environ if environment is None else environment
    address = given.get(COORDINATOR, "")
    if address == "auto":
        jax.distributed.initialize()
        return
    if not address:
        stray = [name for name in (COUNT, ID) if given.get(name)]
        require(not stray, f"{' and '.join(stray)} set without {COORDINATOR}; give host:port of process 0, or auto")
        return
    host, _, port = address.rpartition(":")
    require(host and port.isdecimal(), f"{COORDINATOR}: expected host:port or auto, got {address!r}")
    number, count = (_whole(given, name) for name in (ID, COUNT))
    require(count >= 1 and number < count, f"{ID} {number} is not one of {COUNT} {count}; allowed: 0..{count - 1}")
    jax.distributed.initialize(address, num_processes=count, process_id=number)


def _whole(given: Mapping[str, str], name: str) -> int:
    text = given.get(name, "")
    require(text.isdecimal(), f"{name}: expected a whole number beside {COORDINATOR}, got {text!r}")
    return int(text)
