# Source of 07_sharding.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Sharding: meshes, rules, and what moved where
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/07_sharding.ipynb)
#
# Every parameter names its dimensions ("embed", "heads", "mlp"), a table says which mesh axis each name goes to, and
# the compiler puts in the communication. On a Kaggle TPU v5e-8 the notebook uses the 8 chips; elsewhere, 8 CPU devices
# that jax makes of one. Those show where everything goes, and nothing about speed.

# %%
import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # before jax is imported; an accelerator does not mind

# %% setup
# The same in every notebook: installs jaxlm where it is missing, and leaves the image's jax alone unless it is too old.
import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

FAST = os.environ.get("FAST") == "1"  # the sizes of a test: everything runs, little is learned
PAIRS = "Python 3.11 and jax 0.10.2, Python 3.12 and jax 0.11.2, Python 3.13 and the newest jax"
OLDEST = "0.10.2"


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


if sys.version_info < (3, 11):
    raise SystemExit(f"jaxlm does not run on Python {sys.version.split()[0]}; supported pairs: {PAIRS}")
found = installed("jax")
too_old = bool(found) and numbers(found) < numbers(OLDEST)
wanted = [] if importlib.util.find_spec("jaxlm") else ["jaxlm[plots,tokenize]"]
if too_old:  # its plugin for the accelerator must be of the same version
    plugins = {"libtpu": "[tpu]", "jax-cuda13-plugin": "[cuda13]", "jax-cuda12-plugin": "[cuda12]"}
    kind = next((extra for plugin, extra in plugins.items() if installed(plugin)), "")
    wanted.append(f"jax{kind}>={OLDEST}")
elif found and wanted:
    wanted.append(f"jax=={found}")
if wanted:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
if too_old:
    raise SystemExit(f"jax {found} was too old and is replaced (supported: {PAIRS}): restart, and run from the top")

import jax

import jaxlm

try:
    devices = jax.devices()
except RuntimeError as error:
    raise SystemExit(f"no usable device; os.environ['JAX_PLATFORMS'] = 'cpu' above asks for the CPU: {error}") from None
print(f"jaxlm {jaxlm.__version__}, jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}")

# %% [markdown]
# ## A mesh
#
# Four axes: `data` (copies of the model), `fsdp` (shards of parameters, gathered layer by layer), `tensor` (shards of
# heads and hidden units) and `context` (pieces of each row, for linear recurrences). At most one size is -1, "all that
# remain".

# %%
import math

from jaxlm.dist.mesh import Mesh, make_mesh
from jaxlm.dist.rules import RULES

count = len(devices)
tensor = 2 if count % 2 == 0 else 1
meshes = {
    "data": Mesh(data=-1),
    "fsdp": Mesh(data=1, fsdp=-1),
    "fsdp + tensor": Mesh(data=1, fsdp=-1, tensor=tensor),
}
for name, shape in meshes.items():
    print(f"{name:14}", dict(make_mesh(shape).shape))
print("rules:", dict(RULES))

# %% [markdown]
# A mesh that does not fit the devices is refused in one line.

# %%
try:
    make_mesh(Mesh(data=3, fsdp=count))
except jaxlm.ConfigError as error:
    print(error)

# %% [markdown]
# ## Where the parameters go
#
# `jaxlm.init` with a mesh draws each device's part where it will live, and the values do not depend on the mesh.

# %%
from jaxlm.core.params import flatten

block = jaxlm.Block(mixer=jaxlm.Attention(heads=8, position="rotary"), ffn="glu")
spec = jaxlm.ModelSpec(vocab_size=256, width=64 if FAST else 256, layers=(jaxlm.Group((block,), 2),), remat="none")
model = jaxlm.LanguageModel(spec)
mesh = make_mesh(meshes["fsdp + tensor"])
params = jaxlm.init(model, jax.random.key(0), mesh)
for path, value in flatten(params):
    held = value.addressable_shards[0].data.shape
    print(f"{path:35} {str(value.shape):20} {str(value.sharding.spec):40} each device {held}")

# %% [markdown]
# ## Drawn: who holds which part
#
# A color for each device, in the feed-forward's first matrix of one layer.

# %%
import matplotlib.pyplot as plt
import numpy as np

name = "group_0/block_0/ffn/in"
figure, grid = plt.subplots(1, len(meshes), figsize=(9, 3), layout="constrained")
for axes, (label, shape) in zip(grid, meshes.items(), strict=True):
    placed = dict(flatten(jaxlm.init(model, jax.random.key(0), make_mesh(shape))))[name]
    rows, columns = placed.shape[1], math.prod(placed.shape[2:])
    owner = np.full((rows, columns), np.nan)
    for number, shard in enumerate(placed.addressable_shards):
        mine = np.zeros(placed.shape, bool)
        mine[shard.index] = True
        owner[mine[0].reshape(rows, columns)] = number
    axes.imshow(owner, cmap="tab10", vmin=0, vmax=9, aspect="auto", interpolation="nearest")
    copies = count * placed.addressable_shards[0].data.size // placed.size
    axes.set(title=f"{label}: {copies} x held", xlabel="hidden units", ylabel="width" if axes is grid[0] else "")

# %% [markdown]
# ## What moved where
#
# A training step is compiled for each mesh, and the collectives are counted in what the compiler made of it.

# %%
from jaxlm.objective.next_token import NextToken
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.step import Trainer

batch_size, length = 8, 16 if FAST else 128
tokens = np.random.default_rng(0).integers(0, 256, (batch_size, length + 1)).astype(np.int32)
batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((batch_size, length), np.float32)}
kinds = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
losses = {}
for label, shape in {"one device": None, **meshes}.items():
    trainer = Trainer(model.pure, NextToken(), Optimizer(), 10, mesh=None if shape is None else make_mesh(shape))
    state = trainer.init(seed=0)
    step = jax.jit(trainer.step).lower(state, batch).compile()
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", step.as_text())) for kind in kinds}
    state, metrics = step(state, batch)
    losses[label] = float(metrics["loss"])
    print(f"{label:14} loss {losses[label]:.5f}  ", ", ".join(f"{n} {kind}" for kind, n in found.items() if n))

# %% [markdown]
# The losses agree to float error: a mesh changes where a run is computed, not what. Collectives inside a scan over
# layers count once here and run once a layer.
#
# ## The same in a run
#
# A mesh is a field of a run's configuration, and a run may be resumed on another:
#
#     python -m experiments.train_lm --config=configs/train_lm.py:small --config.train.mesh.fsdp=4 \
#         --config.train.mesh.tensor=2 --workdir=runs/sharded
#
# `load_hf(folder, mesh=mesh)` reads a checkpoint straight onto a mesh. Long rows of linear recurrences go over the axis
# `context`. BUILD.md has several hosts.
#
# ## What to expect
#
# One loss in four places, within 1e-4; `tests/dist` holds every method to that on 8 CPU devices. What it costs on chips
# is not measured in the repository yet.

# %%
spread = max(losses.values()) - min(losses.values())
print(f"largest difference of losses {spread:.1e}")
assert spread < 1e-3
