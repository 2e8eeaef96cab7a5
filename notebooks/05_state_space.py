# Source of 05_state_space.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # State-space models: what a state of fixed size recalls, and how it collapses
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/05_state_space.ipynb)
#
# A recurrent mixer carries a state that does not grow. Attention keeps every key. Two questions follow, each a study of
# `experiments.state_space`: how much is recalled for a state's size, and what happens beyond the training length.

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
# ## The state
#
# `jaxlm.init_state` makes it explicit: caches and recurrent states are arrays of fixed shapes, in and out of every
# call.

# %%
from jaxlm.mixer.mamba2 import Mamba2


def small_model(mixer):
    block = jaxlm.Block(mixer=mixer, ffn=None)
    return jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=64, width=64, layers=(jaxlm.Group((block,), 2),)))


def floats(mixer, length):
    state = jax.eval_shape(lambda: jaxlm.init_state(small_model(mixer), batch=1, max_length=length))
    return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == "float32")


for length in (64, 1024, 16384):
    sizes = {name: floats(mixer, length) for name, mixer in {"mamba2": Mamba2(), "attention": "attention"}.items()}
    print(f"{length:6} tokens:", ", ".join(f"{name} {size:,} floats" for name, size in sizes.items()))

# %% [markdown]
# ## Recall
#
# MQAR (Arora et al. 2024): pairs of a key and a value, then keys again, each of which is to be answered by its value.

# %%
import dataclasses

from configs.state_space import get_config

recall = get_config("recall_smoke" if FAST else "recall_study")
kept = ("attention", "mamba2_n2", "mamba2_n8", "mamba2_n32")
arms = [arm for arm in recall.arms if arm.label in kept and arm.part == recall.arms[0].part]
if FAST:
    arms = [dataclasses.replace(arm, steps=10) for arm in arms]
recall = dataclasses.replace(recall, arms=tuple(arms), seeds=(0,), rates=(3e-3,), eval_examples=64)
example = arms[0].task[0]
print(arms[0].task.render(example))

# %%
import tempfile
from pathlib import Path

from experiments import state_space

found = state_space.run(recall, Path(tempfile.mkdtemp()))
scores = {arm.label: next(r.value for r in found if r.arm == arm.label and r.measure == "score") for arm in arms}
for label, score in scores.items():
    print(f"{label:12} {score:.3f}")

# %% [markdown]
# One seed and one learning rate; `results/state_space/recall` has three seeds at the best of three rates, and other
# mixers. There even N = 2 recalls most of these pairs, which was not expected.
#
# ## Collapse
#
# Rows of several episodes, each with pairs of its own. A model that has only seen one episode in training never had to
# forget, and the second finds its state full (Chen et al. 2024). Two episodes in training are enough to teach it.

# %%
collapse = get_config("collapse_smoke" if FAST else "collapse_study")
chosen = ("unchanged", "reset at episodes")
labels = ("trained on 1",) if FAST else ("trained on 1", "trained on 2")
arms = [arm for arm in collapse.arms if arm.label in labels and arm.part == "N 8"]
if FAST:
    arms = [dataclasses.replace(arm, steps=10) for arm in arms]
settings = tuple(setting for setting in collapse.settings if setting.label in chosen)
collapse = dataclasses.replace(collapse, arms=tuple(arms), settings=settings, seeds=(1,))
found = state_space.run(collapse, Path(tempfile.mkdtemp()))

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.3))
for arm in arms:
    for setting in settings:
        curve = sorted(
            (r.at, r.value) for r in found if (r.arm, r.setting, r.measure) == (arm.label, setting.label, "accuracy")
        )
        style = "-" if setting.label == "unchanged" else ":"
        axes.plot(*zip(*curve, strict=True), style, marker=".", label=f"{arm.label}, {setting.label}")
axes.set_xscale("log", base=2)
axes.set(xlabel="episode", ylabel="accuracy", ylim=(-0.05, 1.05), title="Mamba-2, a state of 8 numbers a channel")
legend = axes.legend(fontsize=8)

# %% [markdown]
# "Reset at episodes" puts every episode into a segment of its own: segment ids reset recurrences as they block
# attention. It shows that the model can do each episode, and that what fails is the state it arrives with.
#
# ## One call for everything
#
# A pass over a row, a prefill in pieces and single steps are the same call at different lengths, and agree to float
# error.

# %%
import jax.numpy as jnp

model = small_model(Mamba2())
params = jaxlm.init(model, jax.random.key(0))
tokens = jax.random.randint(jax.random.key(1), (1, 24), 0, 64)
run = jax.jit(lambda params, tokens, state=None: model.apply({"params": params}, tokens, state=state))
whole = run(params, tokens).logits
state, pieces = jaxlm.init_state(model, batch=1, max_length=24), []
for piece in jnp.split(tokens, [8, 9, 16], axis=1):
    out = run(params, piece, state)
    state = out.state
    pieces.append(out.logits)
print("pieces against the whole:", float(jnp.abs(jnp.concatenate(pieces, 1) - whole).max()))

# %% [markdown]
# ## What to expect
#
# `results/state_space` has the studies that were run, with what was expected and what was found (some of it not as the
# papers say), and the page on state space tells them. Each is one command:
#
#     python -m experiments.state_space --config=configs/state_space.py:collapse_study --workdir=runs/collapse
