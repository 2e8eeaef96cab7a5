"""Two processes with two devices each: they save together, agree on the newest good step, and stop at the same one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.core import compat
from jaxlm.train.checkpoint import SET_ASIDE, Checkpointer
from jaxlm.train.preemption import Preemption
from tests.devices import flags_for

ROOT = Path(__file__).resolve().parent.parent.parent

PROGRAM = """
import sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxlm.core import compat
from jaxlm.core.errors import ConfigError
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.preemption import Preemption

process, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, process)
mesh = compat.make_mesh((4,), ("x",))
shardings = {"w": NamedSharding(mesh, P("x")), "key": NamedSharding(mesh, P())}
values = lambda i: {"w": jnp.arange(8 * 64.0).reshape(8, 64) + i, "key": jax.random.key(3)}
make = jax.jit(values, out_shardings=shardings)

with Checkpointer(folder, keep=None) as checkpointer:
    for step in (1, 2):
        assert checkpointer.save(step, make(step), {"step": step})
    assert checkpointer.wait() and checkpointer.steps() == [1, 2]
    try:
        checkpointer.save(3, {"w": jnp.zeros(2)}, {})
    except ConfigError as error:
        assert "w lives on one process only" in str(error)
    else:
        raise AssertionError("a local array was accepted")

multihost_utils.sync_global_devices("saved")
if process == 0:
    path = max((p for p in (folder / "2").rglob("*") if p.parent.name == "d"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
multihost_utils.sync_global_devices("damaged")

with Checkpointer(folder, keep=None) as checkpointer, Preemption() as preemption:
    restored = checkpointer.restore(make(0))
    assert restored.step == 1 and restored.meta == {"step": 1}
    for old, new in zip(make(1)["w"].addressable_shards, restored.state["w"].addressable_shards):
        assert np.array_equal(old.data, new.data)
    for step in range(2, 2000):
        state = make(step)
        if step == 3:
            print("ready", flush=True)
        if preemption.reached(step):
            checkpointer.save(step, state, {"step": step})
            checkpointer.close()
            print(step, flush=True)
            raise SystemExit(preemption.EXIT_CODE)
        time.sleep(0.02)
"""


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags_for(2),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    commands = [[sys.executable, "-c", PROGRAM, str(i), str(port), str(tmp_path)] for i in range(2)]
    with (tmp_path / "0.err").open("w") as err0, (tmp_path / "1.err").open("w") as err1:
        pair = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=err, text=True)
            for command, err in zip(commands, (err0, err1), strict=True)
        ]
        try:
            for process in pair:
                assert process.stdout is not None and "ready\n" in process.stdout, errors(tmp_path)  # gloo talks too
            pair[1].send_signal(signal.SIGTERM)  # one of the two is told, both stop
            out = [process.communicate(timeout=60)[0] for process in pair]
        finally:
            for process in pair:
                process.kill()
    assert [process.returncode for process in pair] == [Preemption.EXIT_CODE] * 2, errors(tmp_path)
    step, other = (int(text.split()[-1]) for text in out)
    assert step == other
    assert (tmp_path / SET_ASIDE / "2").is_dir()
    assert errors(tmp_path).count("checkpoint step 2 is set aside") == 1  # the first process speaks for both

    # One process alone, on another mesh, reads what the two have written.
    sharding = NamedSharding(compat.make_mesh((8,), ("y",)), P(None, "y"))
    template = {"w": jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=sharding), "key": jax.random.key(0)}
    restored = Checkpointer(tmp_path).restore(template)
    assert restored is not None and restored.step == step
    assert np.array_equal(restored.state["w"], np.arange(8 * 64, dtype=np.float32).reshape(8, 64) + step)
    assert np.array_equal(jax.random.key_data(restored.state["key"]), jax.random.key_data(jax.random.key(3)))


def errors(folder: Path) -> str:
    return "\n".join((folder / f"{i}.err").read_text() for i in range(2))
