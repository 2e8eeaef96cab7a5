"""The wheel as a stranger meets it: built, installed into an empty environment, used outside the checkout.

    python tests/packaging/smoke.py --python python3.12 --constraint constraints.txt      (make wheel-smoke)

Builds wheel and sdist, makes a throw-away environment with the given Python, installs the wheel alone, and then: the
bare install has brought no extra; every public name and method is there; a smoke study runs, its configuration found
among what was installed; a model goes to a Hugging Face folder and comes back the same; the command says what is
wrong with a bad call. Prints a line for each; exit code 1 and the end of the output for the first that fails.

Needs nothing but Python and pip; runs on the Python of the checkout or on any other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("torch", "transformers", "tokenizers", "matplotlib", "wandb", "pyarrow", "grain", "tensorboardX", "lm_eval")

NAMES = f"""
import importlib.util, pathlib, jaxlm, experiments
assert "site-packages" in jaxlm.__file__ and "site-packages" in experiments.__file__, jaxlm.__file__
for name in jaxlm.__all__:
    getattr(jaxlm, name)
there = [name for name in {EXTRAS} if importlib.util.find_spec(name)]
assert not there, f"a bare install brought {{there}}"
print(sum(len(jaxlm.list(slot)) for slot in jaxlm.core.registry.ROOMS), "methods")
"""

ROUND_TRIP = """
import jax, jax.numpy as jnp, numpy as np, jaxlm
block = jaxlm.Block(mixer=jaxlm.Attention(heads=2, position="rotary"), ffn="glu")
model = jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=64, width=16, layers=(jaxlm.Group((block,), repeats=2),)))
params = jaxlm.init(model, jax.random.key(0))
jaxlm.save_hf(model, params, "hf")
again, same = jaxlm.load_hf("hf")
tokens = jnp.arange(12, dtype=jnp.int32)[None]
one, two = (np.asarray(m.apply({"params": p}, tokens).logits) for m, p in ((model, params), (again, same)))
np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
print(jaxlm.generate(again, same, tokens, max_new_tokens=4).shape)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter to install for")
    parser.add_argument("--constraint", default="", help="file of versions for pip; the newest without")
    parser.add_argument("--preset", default="smoke", help="of configs/train_lm.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxlm-wheel-") as folder:
        try:
            check(Path(folder), options.python, options.constraint, options.preset)
        except subprocess.CalledProcessError as error:
            print(f"failed: {error.cmd}\n{(error.stdout + error.stderr)[-3000:]}", file=sys.stderr)
            return 1
    return 0


def check(folder: Path, python: str, constraint: str, preset: str) -> None:
    """Everything the head of the file says, in a folder that is empty."""
    outside = folder / "outside"
    outside.mkdir()
    did(folder, "environment", python, "-m", "venv", "env")
    bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (str(bin / "python"), "-m", "pip", "--disable-pip-version-check", "-q")
    # The sdist is made by the wheel's own back end, and the wheel from what the sdist holds.
    did(folder, "build tool", *pip, "install", "hatchling")
    did(ROOT, "sdist", str(bin / "hatchling"), "build", "-t", "sdist", "-d", str(folder / "dist"))
    (source,) = (folder / "dist").glob("*.tar.gz")
    did(folder, "wheel", *pip, "wheel", "--no-deps", "-w", "dist", str(source))
    did(folder, "", *pip, "uninstall", "-y", "hatchling")
    (wheel,) = (folder / "dist").glob("*.whl")
    limits = ("-c", str(Path(constraint).resolve())) if constraint else ()
    did(folder, "install", *pip, "install", *limits, str(wheel))
    run = str(bin / "python")
    did(outside, "names", run, "-c", NAMES)
    did(outside, "round trip", run, "-c", ROUND_TRIP)
    study = (f"--config=configs/train_lm.py:{preset}", "--workdir=lm")
    did(outside, "study", str(bin / "jaxlm"), "train", *study)
    did(outside, "generate", str(bin / "jaxlm"), "generate", "--checkpoint=lm", "--prompt=def", "--max_new_tokens=8")
    did(outside, "describe", str(bin / "jaxlm"), "describe", "hf")
    did(outside, "binary", run, "-m", "experiments.train_lm", "--help")
    bad = ran(outside, str(bin / "jaxlm"), "train", "--config=configs/train.py:smoke")
    if bad.returncode != 2 or "did you mean configs/train_lm.py?" not in bad.stderr or bad.stderr.count("\n") != 1:
        raise subprocess.CalledProcessError(bad.returncode, "a bad --config", bad.stdout, bad.stderr)


def did(folder: Path, what: str, *command: str) -> None:
    began = time.monotonic()
    done = ran(folder, *command)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, " ".join(command), done.stdout, done.stderr)
    if what:
        last: Sequence[str] = done.stdout.strip().splitlines()[-1:]
        print(f"{what:<12} {time.monotonic() - began:6.1f} s  {''.join(last)[:90]}", flush=True)


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command with the CPU asked for, and nothing of the checkout on its path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = {**kept, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
