"""What the host holds while a checkpoint is read: at most the largest file and 1.3 times what the devices keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlm.ffn.glu import Glu
from jaxlm.interop.load import plan_of, stored_shapes
from jaxlm.interop.tensors import Planned, write_folder
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, Group, ModelSpec
from tests.conftest import ROOT

# The peak is of the process's own pages: a file read through the page cache is the system's, not ours.
PROGRAM = """
import json, resource, sys
import jax, jax.numpy as jnp
import jaxlm
from jaxlm.dist import Mesh, make_mesh

folder, devices = sys.argv[1], int(sys.argv[2])
mesh = make_mesh(Mesh(data=1, fsdp=devices)) if devices > 1 else None
jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))
import jaxlm.interop.load  # what only loading imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model, params = jaxlm.load_hf(folder, mesh=mesh)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
kept = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
print(json.dumps({"peak": after - before, "kept": kept}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """190 MB of Llama in files of 20 MB, one leaf of which (all layers' gates) is a third of it."""
    from jaxlm.core import registry

    folder = tmp_path_factory.mktemp("large")
    block = Block(mixer=Attention(heads=8, kv_heads=4), ffn=Glu(hidden=1408))
    spec = ModelSpec(vocab_size=6000, width=512, layers=(Group((block,), 12),))
    family = registry.get("family", "llama")
    (folder / "config.json").write_text(json.dumps(family.write(spec)))
    draw = np.random.default_rng(0)
    tensors = {
        name: Planned(shape, "float32", lambda shape=shape: draw.standard_normal(shape, np.float32))
        for name, shape in stored_shapes(plan_of(family, spec), spec).items()
    }
    write_folder(folder, tensors, shard_size=20_000_000)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_peak(checkpoint, devices):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint), str(devices)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    print(devices, "devices:", found)
    shard = max(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert found["kept"] > 150e6  # the bound means something
    assert found["peak"] <= shard + 1.3 * found["kept"], found
