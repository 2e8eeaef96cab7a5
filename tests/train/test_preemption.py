"""SIGTERM lets a run save and leave with its documented code, and the former handler comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.preemption import Preemption
from tests.devices import flags_for

ROOT = Path(__file__).resolve().parent.parent.parent

LOOP = """
import sys, time
import jax.numpy as jnp
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.preemption import Preemption

with Preemption() as preemption, Checkpointer(sys.argv[1]) as checkpointer:
    for step in range(1, 1000):
        x = jnp.full(3, step)
        print(step, flush=True)
        time.sleep(0.05)
        if preemption.reached(step):
            checkpointer.save(step, {"x": x}, {"step": step})
            checkpointer.close()
            raise SystemExit(preemption.EXIT_CODE)
"""


def test_sigterm_saves_and_leaves(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags_for(1)}
    command = [sys.executable, "-c", LOOP, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == Preemption.EXIT_CODE == 143, err
    assert "SIGTERM received" in err
    checkpointer = Checkpointer(tmp_path)
    steps = checkpointer.steps()
    assert len(steps) == 1 and steps[0] == int((out or "1\n").split()[-1]) < 100  # the last step begun, none after it
    assert checkpointer.read_meta() == {"step": steps[0]}


def test_the_former_handler_comes_back():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with Preemption() as preemption:
            assert not preemption.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.reached(2) and preemption.reached(3)
        assert not received
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_on_another_thread_nothing_is_watched():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Preemption() as preemption:
            seen.append((signal.getsignal(signal.SIGTERM), preemption.reached(1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
