"""The exported artifact, run by its own README in a process that cannot import jaxlm, against `jaxlm.generate`."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.interop.export import export
from jaxlm.model.language_model import LanguageModel
from tests.tiny import VOCABULARY, params_of, tiny

PROMPT = np.random.default_rng(0).integers(0, VOCABULARY, (2, 5))
LENGTHS, NEW = [5, 3], 6
SIZES = {"batch": 2, "prompt_length": 5, "max_length": 5 + NEW}
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxlm", "pallas_kernels", "flax"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocked())
"""


def model_of(dtype="float32", position="rotary", **fields):
    spec = tiny({"position": position}, dtype=dtype, **fields)
    return LanguageModel(spec), jax.tree.map(lambda p: (p * 3 if p.ndim > 1 else p).astype(dtype), params_of(spec))


@pytest.mark.parametrize("dtype, position", [("float32", "rotary"), ("bfloat16", "t5_bias")])
def test_its_readme_runs_it_without_jaxlm(tmp_path, dtype, position):
    model, params = model_of(dtype, position)
    folder = tmp_path / "artifact"
    manifest = export(model, params, folder, **SIZES)
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    for name in ("prefill", "decode"):
        exported = jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
    assert {w["dtype"] for w in manifest["weights"].values()} == {dtype}
    program = re.search("```python\n(.*)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    prompts = [row[:n].tolist() for row, n in zip(PROMPT, LENGTHS, strict=True)]
    program = program.replace("[[1, 2, 3]] * 2", repr(prompts)).replace("new_tokens = 16", f"new_tokens = {NEW}")
    done = subprocess.run([sys.executable, "-c", BLOCK + program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = jaxlm.generate(model, params, PROMPT, NEW, prompt_lengths=LENGTHS)
    np.testing.assert_array_equal(json.loads(done.stdout), expected)


def test_what_is_there_is_replaced_only_if_asked(tmp_path):
    model, params = model_of(repeats=1)
    export(model, params, tmp_path / "a", **SIZES, platforms=["cpu"])
    with pytest.raises(ConfigError, match="is not empty"):
        export(model, params, tmp_path / "a", **SIZES, platforms=["tpu"])
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["platforms"] == ["cpu"]
    assert export(model, params, tmp_path / "a", **SIZES, platforms=["tpu"], overwrite=True)["platforms"] == ["tpu"]
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["platforms"] == ["tpu"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"platforms": ["cpu", "gpu"]}, "unknown platform 'gpu'; .* allowed: cpu, cuda, rocm, tpu"),
        ({"platforms": []}, "at least one platform"),
        ({"max_length": 4}, "max_length 4 does not hold the prompt of 5"),
        ({"batch": 0}, "positive sizes"),
        ({"cache": "fool"}, "unknown cache"),
        ({"max_length": 100}, "length 100 is beyond the 20 positions"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, options, message):
    model, params = model_of(position={"name": "learned", "args": {"size": 20}})
    with pytest.raises(ConfigError, match=message) as error:
        export(model, params, tmp_path / "a", **{**SIZES, **options})
    assert "\n" not in str(error.value) and not (tmp_path / "a").exists()


def test_random_positions_are_refused(tmp_path):
    model, _ = model_of(position="randomized")
    with pytest.raises(ConfigError, match="'randomized' draws positions at random"):
        export(model, {"embed": {"table": jnp.zeros((1, 1))}}, tmp_path / "a", **SIZES)
