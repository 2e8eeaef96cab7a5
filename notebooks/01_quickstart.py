# Source of 01_quickstart.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Quickstart: train two small models, and ask for more than they have seen
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/01_quickstart.ipynb)
#
# Two decoders learn to copy up to 10 symbols. One has rotary positions, the other no position encoding at all. Then
# both are asked to copy 11 to 20. The notebook runs on one TPU chip, a GPU or a CPU, a minute or two on the last.

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
# ## The task
#
# A task gives examples by number: `task[i]` of the training lengths, `task.at(length, i)` of a stream that training
# never sees. `jaxlm.list("task")` names all of them.

# %%
from jaxlm.data.tasks.copy import CopyRsc

task = CopyRsc(train_lengths=(1, 10), eval_lengths=(11, 20))
print(task.render(task[0]))
print(task.render(task.at(20, 0)))
print(", ".join(jaxlm.list("task")))

# %% [markdown]
# ## The models
#
# A model is a specification, made of blocks in groups that are scanned. A method is named where it goes; here that is
# the position encoding. The parameters are a nested dict of arrays beside it.


# %%
def small_model(position):
    attention = jaxlm.Attention(heads=4, position=position)
    block = jaxlm.Block(mixer=attention, ffn={"name": "mlp", "args": {"activation": "gelu"}})
    layers = (jaxlm.Group(pattern=(block,), repeats=2),)
    return jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=task.vocab_size, width=48, layers=layers, remat="none"))


print(jaxlm.describe(small_model("rotary")))

# %% [markdown]
# ## Training
#
# A loader's batch is a function of (seed, step), and so is everything else that is random: the same cell gives the same
# parameters. `fit` writes metrics and checkpoints into a folder, and continues the run that it finds there.

# %%
import functools
import tempfile
from pathlib import Path

from jaxlm.data.batch import pad_batch

runs = Path(tempfile.mkdtemp())
places = task.tokens_bound(task.train_lengths[1]) - 1
loader = jaxlm.Loader(task, batch_size=32, collate=functools.partial(pad_batch, length=places))
schedule = jaxlm.Schedule("linear", 2e-3, warmup=0, final_fraction=0.0)
config = jaxlm.TrainConfig(
    steps=10 if FAST else 600,
    batch_size=32,
    optimizer=jaxlm.Optimizer(schedule=schedule, b2=0.999, weight_decay=0.01, clip_norm=1.0),
    log_every=10,
)
models = {name: small_model(name) for name in ("none", "rotary")}
trained = {}
for name, model in models.items():
    trained[name] = jaxlm.fit(runs / name, model, "next_token", loader, config).params

# %% [markdown]
# ## Generation
#
# Prompts of all lengths go in as one batch, padded on the right; `prompt_lengths` says where each ends. The example is
# one that the models cannot have seen: 15 symbols.

# %%
import numpy as np

lengths = range(1, 21)
each = 2 if FAST else 50
examples = [task.at(length, i) for length in lengths for i in range(each)]
prompts = np.zeros((len(examples), max(e.prompt_length for e in examples)), np.int32)
for row, e in zip(prompts, examples, strict=True):
    row[: e.prompt_length] = e.tokens[: e.prompt_length]

answers = {}
for name, model in models.items():
    new = jaxlm.generate(
        model,
        trained[name],
        prompts,
        max_new_tokens=max(lengths) + 1,
        prompt_lengths=[e.prompt_length for e in examples],
    )
    answers[name] = np.asarray(new)

at = 14 * each
print(task.render(examples[at]))
for name, new in answers.items():
    print(f"{name:>6}:", " ".join(task.answer(new[at])))

# %% [markdown]
# ## Exact match against length
#
# Within the training lengths both are right. Beyond them the model without positions goes on for a while, the rotary
# one stops at once (Kazemnejad et al. 2023). One seed is an anecdote: `results/length_generalization/demo` has six
# encodings, five seeds each, and the command that makes them again; notebook 02 looks closer.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.2))
for name, new in answers.items():
    right = [task.exact_match(e, row) for e, row in zip(examples, new, strict=True)]
    axes.plot(lengths, np.reshape(right, (-1, each)).mean(1), marker="o", label=f"position {name!r}")
axes.axvspan(*task.train_lengths, color="0.9", label="training lengths")
axes.set(xlabel="symbols to copy", ylabel="exact match", ylim=(-0.05, 1.05), xticks=range(2, 21, 2))
legend = axes.legend()

# %% [markdown]
# ## What is on disk
#
# `jaxlm.load_checkpoint` gives back the model and its parameters: the specification is in the checkpoint.

# %%
import json

model, params = jaxlm.load_checkpoint(runs / "rotary")
same = jax.tree.map(np.array_equal, params, trained["rotary"])
print("the same parameters:", all(jax.tree.leaves(same)))
lines = (runs / "rotary" / "metrics.jsonl").read_text().splitlines()
print("last line of metrics.jsonl:", {k: v for k, v in json.loads(lines[-1]).items() if "/" not in k})

# %% [markdown]
# Next: 02 compares more encodings, 03 extends the context of a checkpoint, 08 adds an encoding of your own.
