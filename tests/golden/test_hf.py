"""Golden Hugging Face checkpoints: logits and greedy continuations recorded with transformers.

Every folder with a config.json and expected.npz counts, whatever its name; a family that is not registered is a skip
that says so. `config_v4.json`, where there is one, is the same model in the spelling of transformers 4. An encoder has
no continuation; it may have an ``attention_mask``, and then the logits of masked tokens are not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core import registry
from jaxlm.model import decoder
from tests.conftest import ROOT, UNREGISTERED

FOLDER = Path(os.environ.get("JAXLM_GOLDEN") or ROOT / "tests" / "golden" / "data") / "hf"
CASES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
SPELLINGS = [
    (name, file) for name in CASES for file in ("config.json", "config_v4.json") if (FOLDER / name / file).is_file()
]

TOLERANCE = 1e-4


def load(name: str, config: str, tmp_path: Path):
    """The model of a case, read with one of its two configurations, and what was recorded."""
    kind = json.loads((FOLDER / name / config).read_text())["model_type"]
    if kind not in registry.methods("family"):
        pytest.skip(f"{UNREGISTERED}: {kind}")
    folder = FOLDER / name
    if config != "config.json":
        folder = tmp_path / name
        shutil.copytree(FOLDER / name, folder)
        shutil.copyfile(FOLDER / name / config, folder / "config.json")
    model, params = jaxlm.load_hf(folder)
    return model, params, dict(np.load(FOLDER / name / "expected.npz"))


def test_there_are_cases():
    assert CASES, f"no hf/*/config.json in {FOLDER.parent}"


@pytest.mark.parametrize(("name", "config"), SPELLINGS)
def test_logits(name, config, tmp_path):
    model, params, expected = load(name, config, tmp_path)
    mask = expected.get("attention_mask")
    call = jax.jit(lambda p, tokens, mask: model.apply({"params": p}, tokens, segment_ids=mask).logits)
    out, seen = call(params, expected["input_ids"], mask), slice(None) if mask is None else mask != 0
    np.testing.assert_allclose(np.asarray(out)[seen], expected["logits"][seen], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CASES if "greedy" in np.load(FOLDER / name / "expected.npz")])
def test_greedy_continuation(name, tmp_path):
    """By `generate`, whose cache must not change a token; by full passes too where a cache may (scalings by length)."""
    model, params, expected = load(name, "config.json", tmp_path)
    prompt, greedy = expected["input_ids"], expected["greedy"]
    encodings = [encoding for encoding, _ in decoder.position_encodings(model.spec).values()]
    if not any(encoding.by_length for encoding in encodings):
        out = jaxlm.generate(model, params, prompt, max_new_tokens=greedy.shape[1])
        np.testing.assert_array_equal(out, greedy)
        return
    # Recorded without a cache: every step under the frequencies of its length.
    call = jax.jit(lambda p, tokens, segments: model.apply({"params": p}, tokens, segment_ids=segments).logits)
    rows, size = np.concatenate((prompt, np.zeros_like(greedy)), 1), prompt.shape[1]
    for at in range(size, rows.shape[1]):
        real = np.broadcast_to((np.arange(rows.shape[1]) < at).astype(np.int32), rows.shape)
        rows[:, at] = np.asarray(call(params, rows, real))[:, at - 1].argmax(-1)
    np.testing.assert_array_equal(rows[:, size:], greedy)
