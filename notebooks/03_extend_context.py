# Source of 03_extend_context.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Extend the context of a Hugging Face checkpoint, without training
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/03_extend_context.ipynb)
#
# A model with rotary positions breaks beyond the length it was trained at. Many papers mend that without training:
# other frequencies, other distances, a window, sharper attention. Each is a name for `jaxlm.extend`, and the parameters
# stay as they are. The notebook trains a tiny checkpoint so that nothing has to be downloaded; to use one of yours, set
# the environment variables `CHECKPOINT` (a folder with config.json, safetensors and tokenizer.json) and `ORIGINAL` (its
# length).

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
# ## A checkpoint
#
# Any spec that a family can express is written as that family's folder. This one is a Llama: RMS norms, rotary
# positions, SwiGLU. It learns Python source, byte by byte, in rows of 64: the standard library that every Python
# carries.

# %%
import tempfile
from pathlib import Path

from jaxlm.data.pack import TokenStream, rows
from jaxlm.data.text import read
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.hf import HfTokenizer

text = read(str(Path(os.__file__).parent / "json" / "*.py") if FAST else "stdlib:", chunk=4096)
folder = os.environ.get("CHECKPOINT", "")
if folder:
    original, tokenizer = int(os.environ["ORIGINAL"]), HfTokenizer.from_folder(folder)
else:
    original, tokenizer = 64, ByteTokenizer()
    block = jaxlm.Block(mixer=jaxlm.Attention(heads=4, position="rotary"), ffn="glu")
    spec = jaxlm.ModelSpec(tokenizer.vocab_size, 64, (jaxlm.Group((block,), repeats=2),), remat="none")
    stream = TokenStream.encode(text.part("train").documents, tokenizer)
    loader = jaxlm.Loader(rows(stream, original), batch_size=32)
    schedule = jaxlm.Schedule("cosine", 5e-3, warmup=0.1, final_fraction=0.1)
    config = jaxlm.TrainConfig(steps=10 if FAST else 800, batch_size=32, optimizer=jaxlm.Optimizer(schedule=schedule))
    runs = Path(tempfile.mkdtemp())
    small = jaxlm.LanguageModel(spec)
    trained = jaxlm.fit(runs / "training", small, "next_token", loader, config).params
    folder = str(jaxlm.save_hf(small, trained, runs / "checkpoint"))
print(folder, *sorted(os.listdir(folder)), sep="\n  ")

# %% [markdown]
# ## In
#
# `load_hf` reads config.json and the tensors; no code of the folder is run. What comes out is a model like any other
# here.

# %%
import json

model, params = jaxlm.load_hf(folder)
print(json.loads((Path(folder) / "config.json").read_text())["model_type"])
print(model.spec.layers[0].pattern[0].mixer)

# %% [markdown]
# ## The ways
#
# `factor` is the longer context over that of training. What each one changes is in the specification.

# %%
for method in ("linear", "ntk", "yarn", "self_extend", "streaming"):
    longer = jaxlm.extend(model, method, factor=4, original=original)
    mixer = longer.spec.layers[0].pattern[0].mixer
    print(f"{method:12} position {mixer.position}\n{'':12} mask     {mixer.mask}")

# %% [markdown]
# ## Side by side
#
# Windows of held-out text of every length end at the same tokens, and the loss of the last 32 of them is what is
# compared. A loss that stays is context that does no harm; one that falls is context that is used.

# %%
import jax.numpy as jnp
import numpy as np

methods = ("none", "yarn") if FAST else ("none", "linear", "ntk", "yarn", "self_extend", "streaming")
multiples = (1, 2) if FAST else (1, 2, 4, 8)
tail, windows = 32, 2 if FAST else 4 if os.environ.get("CHECKPOINT") else 32
held_out = np.concatenate([tokenizer.encode(document.text) for document in text.part("validation").documents])
longest = original * max(multiples)
ends = np.linspace(longest + 1, len(held_out), windows).astype(int)


def loss_of_tail(model, length):
    tokens = jnp.asarray(np.stack([held_out[end - length - 1 : end] for end in ends]))

    @jax.jit
    def loss(params, tokens):
        hidden = model.apply({"params": params}, tokens[:, :-1], logits=False).hidden
        logits = jaxlm.unembed(model, params, hidden[:, -tail:])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, -tail:, None], -1)
        return -picked.mean()

    return float(loss(params, tokens))


losses = {}
for method in methods:
    at = [jaxlm.extend(model, method, factor=multiple, original=original) for multiple in multiples]
    losses[method] = [loss_of_tail(one, original * n) for one, n in zip(at, multiples, strict=True)]
    print(f"{method:12}", *(f"{loss:6.2f}" for loss in losses[method]))

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
for method, found in losses.items():
    axes.plot(multiples, found, marker="o", label="as trained" if method == "none" else method)
axes.set_xscale("log", base=2)
axes.set(xlabel="context, in training lengths", ylabel=f"loss of the last {tail} tokens, nats", xticks=multiples)
legend = axes.legend(fontsize=8)

# %% [markdown]
# ## Text without end, in constant memory
#
# `streaming` keeps the first tokens and a window. With the cache that does the same, a step costs what it cost before,
# however long the text gets.

# %%
from jaxlm.cache.window_sink import WindowSink

prompt = held_out[None, :original]
endless = jaxlm.extend(model, "streaming", factor=4, original=original)
keeps = WindowSink(sinks=4, window=original - 4)
new = jaxlm.generate(endless, params, prompt, max_new_tokens=16 if FAST else 4 * original, cache=keeps)
print(tokenizer.decode(np.asarray(new[0])))

# %% [markdown]
# ## Out
#
# A model with another mask or encoding is saved as a folder where its family has a key for that. YaRN is one that
# Llama's config.json knows.

# %%
longer = jaxlm.extend(model, "yarn", factor=4, original=original)
saved = jaxlm.save_hf(longer, params, Path(tempfile.mkdtemp()) / "longer")
config_json = json.loads((saved / "config.json").read_text())
print({key: value for key, value in config_json.items() if "rope" in key})

# %% [markdown]
# ## What to expect
#
# Untouched rotary positions break at twice the training length; SelfExtend and the window stay near their loss, the
# latter by forgetting. `results/context_extension/study` has these ways and the trained ones with three seeds,
# passkeys, and what a decoding step costs, and the page on positions says what each one does. On your checkpoint:
#
#     python -m experiments.context_extension --config=configs/context_extension.py:checkpoint \
#         --config.checkpoint=FOLDER --config.original=8192 --workdir=runs/mine \
#         --config.methods="('none','yarn','self_extend','streaming')"
