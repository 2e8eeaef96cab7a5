"""What is written for our model works on an imported checkpoint: masks, position encodings and caches, untouched."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Window
from jaxlm.core.errors import ConfigError
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.dynamic import Dynamic
from tests.interop.test_bad_folders import settings
from tests.interop.test_families import DATA, loaded, recorded
from tests.position.test_laws import TwoViews
from tests.tiny import caller, close, stream


def test_a_window_on_llama_is_mistral(tmp_path):
    """The tensors of the two families have the same names: Mistral's, read as Llama's, and given its window."""
    folder = shutil.copytree(DATA / "mistral", tmp_path / "llama")
    settings(model_type="llama", architectures=["LlamaForCausalLM"], sliding_window=None)(folder)
    model, params = jaxlm.load_hf(folder)
    windowed = jaxlm.replace(model, {"mixer.mask": Window(6)})
    expected = recorded("mistral")
    plain, near = (np.asarray(caller(m.spec)(params, expected["input_ids"])[0]) for m in (model, windowed))
    np.testing.assert_allclose(near, expected["logits"], rtol=0, atol=1e-4)
    assert np.abs(plain - near).max() > 0.1


def test_a_scaling_on_llama_is_the_scaled_llama():
    """The same weights under the settings of another recorded model would be another model; frequencies are ours."""
    model, params = loaded("llama")
    scaled = jaxlm.replace(model, {"mixer.position.scaling": Dynamic(original=12)})
    tokens = recorded("llama")["input_ids"]
    short = caller(scaled.spec)(params, tokens[:, :12])[0]
    close(short, caller(model.spec)(params, tokens[:, :12])[0])  # nothing changes up to the length of training
    assert np.abs(caller(scaled.spec)(params, tokens)[0] - caller(model.spec)(params, tokens)[0]).max() > 0.05


@pytest.mark.slow
def test_views_on_llama():
    """Two merged views (as SelfExtend has), full pass = pieces = steps, with the weights and grouped heads of Llama."""
    model, params = loaded("llama")
    extended = jaxlm.replace(model, {"mixer.position": TwoViews(near=5)})
    tokens, call = recorded("llama")["input_ids"], caller(extended.spec)
    full = call(params, tokens)[0]
    assert np.isfinite(full).all()
    close(stream(extended.spec, call, params, tokens, (7, 1, 1, 1, 10)), full, 2e-5)
    assert jaxlm.generate(extended, params, tokens, max_new_tokens=3).shape == (2, 3)


def test_replace_says_what_there_is():
    model, _ = loaded("llama")
    with pytest.raises(ConfigError, match="unknown field of Attention 'masks'.*did you mean 'mask'"):
        jaxlm.replace(model, {"mixer.masks": "causal"})
    assert jaxlm.replace(model, {"model.dtype": "bfloat16"}).spec.dtype == "bfloat16"
    assert jaxlm.replace(model, {"mixer.position": Rotary()}).origin == model.origin
