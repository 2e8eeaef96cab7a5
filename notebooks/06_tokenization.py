# Source of 06_tokenization.ipynb, which `python notebooks/build.py` writes.

# %% [markdown]
# # Tokenization: exact bytes from a token model, and what merges give away
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxlm/jaxlm/blob/main/notebooks/06_tokenization.ipynb)
#
# A tokenizer stands between the text and the model, and leaks both ways. A prompt that ends inside a word tells the
# model that a token ended there. And the order of a tokenizer's merges tells what text it was trained on.

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
# ## A tokenizer
#
# `jaxlm.tokenize` is numpy alone. The text is Python source of the standard library, which is there already.

# %%
from pathlib import Path

from jaxlm.data.text import read
from jaxlm.tokenize.bpe import BpeTokenizer

library = Path(os.__file__).parent
sources = "*.py" if not FAST else "json/*.py"
text = read(str(library / sources), chunk=2048)
train = [document.text for document in text.part("train").documents]
tokenizer = BpeTokenizer.train(train, vocab_size=300 if FAST else 768)
print(f"{text.num_bytes:,} bytes,", f"{tokenizer.vocab_size} tokens")
print([tokenizer.decode([i]) for i in tokenizer.encode("    return self.encoding")])

# %% [markdown]
# ## A small model of its tokens

# %%
import tempfile

from jaxlm.data.pack import TokenStream, rows

block = jaxlm.Block(mixer=jaxlm.Attention(heads=4, position="rotary"), ffn="glu")
model = jaxlm.LanguageModel(jaxlm.ModelSpec(tokenizer.vocab_size, 64, (jaxlm.Group((block,), 2),), remat="none"))
loader = jaxlm.Loader(rows(TokenStream.encode(text.part("train").documents, tokenizer), 64), batch_size=16)
schedule = jaxlm.Schedule("cosine", 5e-3, warmup=0.1, final_fraction=0.1)
config = jaxlm.TrainConfig(steps=5 if FAST else 600, batch_size=16, optimizer=jaxlm.Optimizer(schedule=schedule))
params = jaxlm.fit(tempfile.mkdtemp(), model, "next_token", loader, config).params

# %% [markdown]
# ## The prompt that ends inside a word
#
# Who tokenizes the prompt and asks for the next token gets the answer to another question: what follows if a token ends
# here? `byte_view` sums over all encodings that the text may turn out to have (Phan et al. 2024). Beside each other,
# the likeliest next bytes of both.

# %%
import numpy as np

from jaxlm.decode.byte_level import byte_view, naive_next_byte
from jaxlm.decode.token_model import FullPass

prompts = ["    retur", "import o", "class Enco"]
view = byte_view(model, params, tokenizer)
exact = view.next_byte(prompts)
naive = naive_next_byte(FullPass(model, params), tokenizer, prompts)


def likeliest(log_probs):
    best = np.argsort(log_probs[:256])[::-1][:3]
    return "  ".join(f"{chr(byte)!r} {np.exp(log_probs[byte]):.2f}" for byte in best)


for prompt, one, other in zip(prompts, exact, naive, strict=True):
    print(f"{prompt!r}\n   exact  {likeliest(one)}\n   naive  {likeliest(other)}")

# %% [markdown]
# The bytes of a text cost what its tokens cost, or less: the exact view sums over more encodings than one.

# %%
held_out = [document.text[:120] for document in text.part("validation").documents[: 2 if FAST else 8]]
bits = [float(one.sum()) for one in view.score(held_out)]
print(f"{sum(bits) / sum(map(len, held_out)):.2f} bits a byte of held-out text")
print(view.generate(["def __init__(sel"], 8 if FAST else 60, temperature=0.7, key=jax.random.key(0))[0])

# %% [markdown]
# ## What a tokenizer was trained on
#
# BPE merges the most frequent pair at every step, so each merge says of the mixed counts which pair was the greatest.
# With a sample of each kind of text, the shares that explain the merges are a linear program (Hayase et al. 2024). Here
# a tokenizer is trained on a mixture that we know, and the samples are other text of the same kinds.

# %%
from jaxlm.data.categories import categories
from jaxlm.tokenize.mixture_inference import infer

kinds = ("generated_0", "generated_2", "generated_4") if FAST else ("code", "docstrings", "generated_2")
size = 60_000 if FAST else 600_000
found = categories(names=kinds, size=size, least=size // 3)
shares = (0.6, 0.3, 0.1)
draw = np.random.default_rng(0)
mixed = []
for one, share in zip(found, shares, strict=True):
    order = draw.permutation(len(one.train))[: int(share * len(one.train))]
    mixed.append(b"".join(one.train[i] for i in order))
unknown = BpeTokenizer.train(mixed, vocab_size=300 if FAST else 560)
guess = infer(unknown.merges, {one.name: one.count for one in found})
true = np.array([len(part) for part in mixed]) / sum(map(len, mixed))
for name, share, inferred in zip(guess.categories, true, guess.bytes, strict=True):
    print(f"{name:12} {share:.3f} of the bytes, inferred {inferred:.3f}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 2.6))
places = np.arange(len(true))
axes.bar(places - 0.2, true, 0.4, label="trained on")
axes.bar(places + 0.2, guess.bytes, 0.4, label="inferred from the merges")
axes.set(xticks=places, xticklabels=guess.categories, ylabel="share of bytes")
legend = axes.legend(fontsize=8)

# %% [markdown]
# ## What to expect
#
# How near the shares come is printed above. `results/tokenization/mixture` has random mixtures of eight kinds, and what
# the number of merges does. The other studies stand beside it, and the page on tokenization tells all of them. For
# files of your own:
#
#     python -m experiments.tokenizer_report --tokenizers=byte,mine=tokenizer.json --texts=code=src,prose=docs
#     python -m experiments.mixture_inference --tokenizer=merges.txt --samples=samples
