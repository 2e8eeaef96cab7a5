"""A model saved without a run comes back as it was, whatever the dtypes of its parameters."""

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.train.load import ORIGIN, save_checkpoint
from tests.tiny import params_of, tiny

SPEC = tiny(mixer={"position": "rotary"})


def test_round_trip_of_several_dtypes(tmp_path):
    params = params_of(SPEC)
    params["embed"] = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params["embed"])
    params["final_norm"] = jax.tree.map(lambda leaf: leaf.astype("float16"), params["final_norm"])
    save_checkpoint(jaxlm.LanguageModel(SPEC), params, tmp_path)
    model, restored = jaxlm.load_checkpoint(tmp_path)
    assert model == jaxlm.LanguageModel(SPEC) and jax.tree.structure(restored) == jax.tree.structure(params)
    for leaf, same in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        assert leaf.dtype == same.dtype
        np.testing.assert_array_equal(leaf, same)


def test_origin_is_found_wherever_the_folder_is(tmp_path):
    save_checkpoint(jaxlm.LanguageModel(SPEC), params_of(SPEC), tmp_path / "a")
    (tmp_path / "a" / ORIGIN / "some-model").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "b")
    assert jaxlm.load_checkpoint(tmp_path / "b")[0].origin == str(tmp_path / "b" / ORIGIN / "some-model")


def test_what_does_not_fit_is_named(tmp_path):
    params = params_of(SPEC)
    params["embed"]["table"] = params["embed"]["table"][:-1]
    save_checkpoint(jaxlm.LanguageModel(SPEC), params, tmp_path)
    with pytest.raises(ConfigError, match=r"params/embed/table is float32\[12, 16\] in the checkpoint, not"):
        jaxlm.load_checkpoint(tmp_path)
