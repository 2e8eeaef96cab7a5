# Source of 02_length_generalization.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Length generalization: which position encoding goes on beyond its training?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/02_length_generalization.ipynb)
#
# Kazemnejad et al. 2023 train decoders on short examples and test them on longer ones. Their finding: without any
# position encoding (NoPE) a decoder extrapolates better than with the usual ones. Here a part of the study runs in
# minutes; the whole of it is one command, and its figures are in the repository.

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
# ## A study is a configuration
#
# `configs/length_generalization.py` has the presets. A configuration is a frozen dataclass: `dataclasses.replace`
# changes it, and what does not fit is refused before anything compiles.

# %%
import dataclasses

from configs.length_generalization import PRESETS, get_config

for name, text in PRESETS.items():
    print(f"{name:12} {text}")

demo = get_config("demo")
kept = ("none", "rotary") if FAST else ("none", "alibi", "rotary", "sinusoidal", "randomized_rotary")
config = dataclasses.replace(
    demo,
    encodings=tuple(encoding for encoding in demo.encodings if encoding.label in kept),
    seeds=(0,) if FAST else (0, 1),
)
if FAST:
    one = dataclasses.replace(config.studies[0], steps=10)
    config = dataclasses.replace(config, studies=(one,), eval_examples=4, steps_per_call=10)
study = config.studies[0]
print(study.task.render(study.task[3]))

# %% [markdown]
# ## Training
#
# Every (encoding, seed) is a decoder of two layers, trained from scratch. Finished runs are rows of `results.csv` in
# the workdir, so an interrupted cell goes on where it stopped.

# %%
import tempfile
from pathlib import Path

from experiments import length_generalization

workdir = Path(tempfile.mkdtemp())
rows = length_generalization.run(config, workdir)

# %% [markdown]
# ## The table
#
# The last column is what the authors published, for models of 107 M parameters at twice the lengths. The order is what
# is compared.

# %%
from experiments import length_generalization_report as report

labels = [encoding.label for encoding in config.encodings]
print(report.table(rows, labels, {study.name: study.task}))

# %% [markdown]
# ## The curves

# %%
import matplotlib.pyplot as plt
import numpy as np

figure, axes = plt.subplots(figsize=(6.5, 3.5))
for label in labels:
    by_length = {}
    for row in rows:
        if row.position == label:
            by_length.setdefault(row.length, []).append(row.exact_match)
    lengths = sorted(by_length)
    scores = np.array([by_length[length] for length in lengths])
    (line,) = axes.plot(lengths, scores.mean(1), label=label)
    axes.fill_between(lengths, scores.min(1), scores.max(1), alpha=0.2, color=line.get_color())
axes.axvspan(*study.task.train_lengths, color="0.9")
axes.set(xlabel="length", ylabel="exact match", title=f"{study.name}: mean, least and most of the seeds")
legend = axes.legend(fontsize=8)

# %% [markdown]
# ## What a random position encoding does
#
# `randomized` (Ruoss et al. 2023) draws increasing positions from a larger range, so that a model trained on short rows
# has met the positions of long ones. The positions are drawn once for a batch and handed to every call, like any
# others.

# %%
import jax.numpy as jnp

encoding = {"name": "randomized", "args": {"inner": "rotary", "max_position": 64}}
block = jaxlm.Block(mixer=jaxlm.Attention(heads=4, position=encoding))
model = jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=24, width=48, layers=(jaxlm.Group((block,), 2),)))
plain = jnp.broadcast_to(jnp.arange(10), (3, 10))
print(jaxlm.draw_positions(model, jax.random.key(0), plain))

# %% [markdown]
# ## What to expect
#
# `results/length_generalization/demo` holds the committed run of the preset `demo`: NoPE ahead, rotary and sinusoidal
# at nothing beyond the training lengths, random positions between. `results/length_generalization/study` asks the same
# of five tasks, and the answer there depends on the task:
#
#     python -m experiments.length_generalization --config=configs/length_generalization.py:study --workdir=runs/study
