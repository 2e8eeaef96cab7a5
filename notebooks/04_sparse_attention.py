# Source of 04_sparse_attention.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Landmark and block-sparse attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/04_sparse_attention.ipynb)
#
# A mask here is data, never an array: a tree of small parts joined by `&`, `|` and `~`. From it the kernels know which
# tiles hold no visible pair, and never compute those. This notebook draws masks, times them on the chip at hand, and
# shows what landmarks add: blocks that are found rather than fixed.

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
# ## Masks are data

# %%
import jax.numpy as jnp
import numpy as np

from jaxlm.attention import patterns
from jaxlm.attention.mask import Causal, Globals, Sinks, Window
from jaxlm.attention.show import show

mask = Causal() & (Window(12) | Sinks(4) | Globals((20,)))
print(mask)
print(show(mask, 48, cells=24))

# %% [markdown]
# ## Published patterns
#
# `jaxlm.attention.patterns` has them as functions that return masks; `jaxlm.list("mask")` lists the parts.

# %%
import matplotlib.pyplot as plt

length, block = 64, 4
chosen = jnp.array([[[[i, i // 2, 0] for i in range(length // block)]]])
masks = {
    "causal": Causal(),
    "window + sinks": Causal() & (Window(16) | Sinks(4)),
    "Longformer": patterns.longformer(16, global_tokens=(0, 32)),
    "BigBird": patterns.bigbird(length, block=block),
    "strided (Sparse Transformer)": patterns.sparse_transformer(8),
    "blocks chosen per query": patterns.block_sparse(chosen, block=block),
}
at = np.arange(length)
figure, grid = plt.subplots(2, 3, figsize=(7.5, 5.2), layout="constrained")
for axes, (name, one) in zip(grid.flat, masks.items(), strict=True):
    seen = np.asarray(one.pointwise(jnp.asarray(at)[:, None], jnp.asarray(at)[None])).reshape(length, length)
    axes.imshow(seen, cmap="Blues", vmax=1.4)
    axes.set(title=f"{name}: {seen.mean():.0%}", xticks=[], yticks=[])
    axes.title.set_fontsize(9)
grid[1, 0].set(xlabel="keys", ylabel="queries")

# %% [markdown]
# ## Which implementation serves
#
# `attention` takes the first implementation that can. One that is asked for by name says why it cannot.

# %%
from jaxlm.ops import attention
from jaxlm.ops.attention import IMPLEMENTATIONS

on_cpu = devices[0].platform == "cpu"
dtype = jnp.float32 if on_cpu else jnp.bfloat16
few = jax.random.normal(jax.random.key(0), (1, 256, 4, 64), dtype)
for name in IMPLEMENTATIONS:
    try:
        jax.block_until_ready(attention(few, few, few, mask=Causal(), implementation=name))
        print(f"{name:11} serves")
    except jaxlm.ConfigError as error:
        print(f"{name:11} {error}")

# %% [markdown]
# ## Timed here
#
# The same call with other masks. What a mask saves are tiles, so the share of pairs it shows is the bound and not the
# promise.

# %%
import statistics
import time


def milliseconds(function, *arguments, rounds=2 if FAST else 5):
    jax.block_until_ready(function(*arguments))  # compiles
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


length = 512 if FAST else 4096 if on_cpu else 16384
q, k, v = (jax.random.normal(key, (1, length, 4, 64), dtype) for key in jax.random.split(jax.random.key(1), 3))
masks = {
    "causal": Causal(),
    "window 256": Window(256),
    "window 256 + sinks": Causal() & (Window(256) | Sinks(4)),
    "BigBird, causal": Causal() & patterns.bigbird(length, block=64),
}
times = {
    name: milliseconds(jax.jit(lambda q, k, v, m=m: attention(q, k, v, mask=m)), q, k, v) for name, m in masks.items()
}
for name, found in times.items():
    print(f"{name:20} {found:8.1f} ms, {times['causal'] / found:5.1f} times as fast as causal")

# %%
bars, axes = plt.subplots(figsize=(6, 2.2))
axes.barh(list(times), list(times.values()))
axes.invert_yaxis()
label = axes.set_xlabel(f"ms, {length} tokens, 4 heads of 64, {devices[0].device_kind}")

# %% [markdown]
# ## Documents in one row
#
# Packed rows need no mask of their own: `segment_ids` keep documents apart, and 0 is padding, which gives 0 and never
# NaN.

# %%
segment_ids = jnp.repeat(jnp.array([[1, 2, 0]]), jnp.array([100, 120, 36]), axis=1)
out = attention(few, few, few, mask=Causal(), segment_ids=segment_ids)
alone = attention(few[:, :100], few[:, :100], few[:, :100], mask=Causal())
print(
    "first document as if alone:",
    float(jnp.abs(out[:, :100] - alone).max()),
    "padding:",
    float(jnp.abs(out[:, 220:]).max()),
)

# %% [markdown]
# ## Landmarks
#
# Landmark attention (Mohtashami and Jaggi 2023) ends every block with a landmark, whose key stands for the block. In
# training the landmark's weight is shared among the tokens of its block; at inference a query reads its own block and
# the few whose landmarks score highest. The model adds the landmarks to its input and takes them out of its output by
# itself.

# %%
period = 16
mixer = {"name": "landmark", "args": {"heads": 4, "position": "rotary", "period": period}}
edit = {"name": "landmark", "args": {"period": period}}
layers = (jaxlm.Group((jaxlm.Block(mixer=mixer),), repeats=2),)
model = jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=257, width=64, layers=layers, edit=edit))
params = jaxlm.init(model, jax.random.key(0))

context = 240 if FAST else 1920
tokens = jax.random.randint(jax.random.key(2), (1, context), 0, 256)
full = model.apply({"params": params}, tokens).logits
print(f"{context} tokens in, logits {full.shape}; the landmarks between are the model's own affair")

# %% [markdown]
# Retrieval from all blocks is the training pass, exactly. From a few blocks it is what the landmarks think best; the
# parameters here are fresh, so this shows the mechanism and says nothing about its quality.

# %%
read = jax.jit(lambda params, tokens, state: model.apply({"params": params}, tokens, state=state).logits)
for blocks in (0, 2) if FAST else (0, 2, 8, 32):
    cache = {"name": "landmark", "args": {"blocks": blocks, "positions": "original"}}
    found = read(params, tokens, jaxlm.init_state(model, 1, context, cache=cache))
    print(f"blocks {blocks or 'all':>3}: difference from the training pass {float(jnp.abs(found - full).max()):.1e}")

# %% [markdown]
# ## What to expect
#
# On a trained model the landmarks find a passkey at 32 times the training length, where full attention with rotary
# positions is lost: `results/long_context_retrieval/study`, which one command makes again.
# `results/benchmark/attention.txt` sets the kernels beside others', and BUILD.md says on which chips they have run.
#
#     python -m experiments.long_context_retrieval --config=configs/long_context_retrieval.py:study --workdir=runs/found
#     python -m experiments.benchmark --suite=attention --workdir=runs/attention
