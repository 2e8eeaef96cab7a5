# Source of 08_your_own_method.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Write your own position encoding, and your own mixer
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/08_your_own_method.ipynb)
#
# A method is a frozen dataclass that derives from its slot's base. In the library it is one file; in a notebook it is
# one cell. From then on its name works wherever a name of the library's works: specifications, JSON, checkpoints,
# `describe`.

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
# ## A position encoding
#
# Say keys are to fade with distance, by the same slope in every head: `logits[q, k] -= slope * |q - k|`. That is a bias
# by position alone, so it is a `TileBias`, which kernels evaluate tile by tile: `numbers` is what each head needs to
# know, `at` a pure function of them and two positions. The hooks that are not overridden do nothing.

# %%
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxlm.core.config import require
from jaxlm.core.types import PositionEncoding, TileBias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FadeBias(TileBias):
    slopes: jax.Array  # float32 [H]

    def numbers(self):
        return self.slopes[:, None]

    def at(self, numbers, pos_q, pos_k):
        return -numbers[0] * jnp.abs(pos_q - pos_k).astype(jnp.float32)


@jaxlm.register("position", "fade")
@dataclasses.dataclass(frozen=True)
class Fade(PositionEncoding):
    """Every head subtracts slope * distance from its logits."""

    paper: ClassVar[str] = "none: the toy of this notebook"

    slope: float = 0.1

    def check(self):
        require(self.slope >= 0, f"Fade.slope must not be negative, got {self.slope}")

    def bias(self, p, q, k, pos_q, pos_k, side=None):
        return FadeBias(jnp.full((q.shape[2],), self.slope, jnp.float32))


print(jaxlm.list("position")["fade"])

# %% [markdown]
# Its fields are checked like any others, and it goes through JSON and back.

# %%
attention = jaxlm.Attention(heads=4, position={"name": "fade", "args": {"slope": 0.3}})
assert attention == jaxlm.Attention(heads=4, position=Fade(0.3))
spec = jaxlm.ModelSpec(vocab_size=24, width=48, layers=(jaxlm.Group((jaxlm.Block(mixer=attention),), repeats=2),))
assert jaxlm.ModelSpec.from_json(spec.to_json()) == spec
for wrong in ({"name": "fad"}, {"name": "fade", "args": {"slope": -1.0}}, {"name": "fade", "args": {"slop": 1.0}}):
    try:
        jaxlm.Attention(position=wrong)
    except jaxlm.ConfigError as error:
        print(str(error)[:150])

# %% [markdown]
# ## The law
#
# A full pass, pieces of any length and single steps are one call, and agree. The cache keeps keys and their positions,
# so an encoding need not know of it. The law catches most mistakes; `tests/position/test_laws.py` holds every method to
# it, with padding, packing, sharding and gradients besides.

# %%
import numpy as np


def law(model, cuts=(5, 6, 11), length=16):
    """The greatest difference between a full pass and the same tokens in pieces."""
    params = jaxlm.init(model, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, length), 0, model.spec.vocab_size)
    run = jax.jit(lambda params, tokens, state=None: model.apply({"params": params}, tokens, state=state))
    whole, state, pieces = run(params, tokens).logits, jaxlm.init_state(model, 2, length), []
    for piece in jnp.split(tokens, cuts, axis=1):
        out = run(params, piece, state)
        state = out.state
        pieces.append(out.logits)
    return float(jnp.abs(jnp.concatenate(pieces, 1) - whole).max())


difference = law(jaxlm.LanguageModel(spec))
print(f"fade: pieces differ from the whole by {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## A mixer
#
# A mixer with a state of fixed size derives from `Recurrent`: it says what it learns (`params`), what it remembers of a
# row (`memory`), and how tokens and memory make output and memory (`mix`). Ours is a leaky average, with a leak for
# each channel: `h_t = a h_{t-1} + (1 - a) W x_t`. `diagonal_scan` is that recurrence, and knows of padding and packed
# documents.

# %%
from jaxlm.core.params import ParamSpec, Uniform
from jaxlm.mixer.recurrent import Recurrent
from jaxlm.ops.diagonal_scan import diagonal_scan


@jaxlm.register("mixer", "leaky")
@dataclasses.dataclass(frozen=True)
class Leaky(Recurrent):
    """A leaky average of what came before."""

    paper: ClassVar[str] = "none: the toy of this notebook"

    def params(self, dims):
        return {
            "in": ParamSpec((dims.width, dims.width), ("embed", "mlp")),
            "leak": ParamSpec((dims.width,), ("mlp",), Uniform(1.0, 4.0), decay=False),
            "out": ParamSpec((dims.width, dims.width), ("mlp", "embed")),
        }

    def memory(self, dims):
        return {"h": (dims.width,)}

    def flops(self, dims, length):
        return 3.0 * dims.width

    def mix(self, p, x_BLD, stream, ctx):
        keep = jax.nn.log_sigmoid(p["leak"])
        new = (x_BLD @ p["in"]) * -jnp.expm1(keep)
        before = None if stream.memory is None else stream.memory["h"]
        h, last = diagonal_scan(keep, new, rows=stream.rows, state=before)
        return h.astype(x_BLD.dtype) @ p["out"], stream.remember(h=last)


layers = (jaxlm.Group((jaxlm.Block(mixer="leaky"), jaxlm.Block(mixer=attention)), repeats=1),)
hybrid = jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=24, width=48, layers=layers, remat="none"))
print(jaxlm.describe(hybrid))
difference = law(hybrid)
print(f"leaky: pieces differ from the whole by {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## Does it do anything?
#
# Copying, trained on up to 10 symbols, as in the quickstart. What it is good for is an experiment's to say:
# `Encoding("fade", "fade")` in a configuration of `experiments.length_generalization` puts it beside the others.

# %%
import functools
import tempfile

from jaxlm.data.batch import pad_batch
from jaxlm.data.tasks.copy import CopyRsc

task = CopyRsc()
loader = jaxlm.Loader(task, 32, collate=functools.partial(pad_batch, length=task.tokens_bound(10) - 1))
optimizer = jaxlm.Optimizer(schedule=jaxlm.Schedule("linear", 2e-3, warmup=0, final_fraction=0.0), weight_decay=0.01)
config = jaxlm.TrainConfig(steps=5 if FAST else 400, batch_size=32, optimizer=optimizer)
folder = tempfile.mkdtemp()
params = jaxlm.fit(folder, hybrid, "next_token", loader, config).params

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
figure, axes = plt.subplots(figsize=(5, 2.6))
axes.plot([line["step"] for line in lines], [line["loss"] for line in lines])
axes.set(xlabel="step", ylabel="loss, nats a token", title="a leaky average and fading attention")
example = task.at(7, 0)
new = jaxlm.generate(hybrid, params, example.tokens[None, : example.prompt_length], max_new_tokens=8)
print(task.render(example))
print("answer:", " ".join(task.answer(np.asarray(new[0]))))

# %% [markdown]
# The checkpoint names the methods. It is read back wherever their names are registered, here or in a program that
# defines the same classes.

# %%
again, _ = jaxlm.load_checkpoint(folder)
assert again.spec == hybrid.spec

# %% [markdown]
# ## From here
#
# To keep a method: one file in the slot's folder, one line in its table, one line in the tests' list. CONTRIBUTING.md
# walks through that with the same toy, and has the table of hooks. A cell may be run again: a class of the same name
# takes the place of the earlier one.
