"""Parameter specifications: keyed by path, scaled by fan-in, stacked by layer."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxlm.core.params import (
    Constant,
    FanIn,
    Normal,
    ParamSpec,
    count,
    flatten,
    initialize,
    map_specs,
    ones,
    stacked,
    zeros,
)

SPECS = {
    "a": {"kernel": ParamSpec((3, 4), ("embed", "mlp")), "bias": ParamSpec((4,), ("mlp",), zeros, decay=False)},
    "b": ParamSpec((5,), (None,), Constant(2.5)),
    "c": {"d": {"gain": ParamSpec((2,), (None,), ones)}},
}
KEY = jax.random.key(0)


def test_paths_and_counts():
    paths = ["a/kernel", "a/bias", "b", "c/d/gain"]
    assert [path for path, _ in flatten(SPECS)] == paths
    named = map_specs(lambda path, spec: (path, spec.shape), SPECS)
    assert dict(flatten(named)) == {path: (path, spec.shape) for path, spec in flatten(SPECS)}
    assert count(SPECS) == 12 + 4 + 5 + 2


def test_a_value_depends_on_the_key_and_its_path_alone():
    before = dict(flatten(initialize(SPECS, KEY)))
    more = {"new": ParamSpec((3, 4), (None, None)), **SPECS, "a": {"extra": SPECS["a"]["kernel"], **SPECS["a"]}}
    after = dict(flatten(initialize(more, KEY)))
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path])
    assert not np.array_equal(after["a/extra"], after["a/kernel"])
    assert not np.array_equal(initialize(SPECS, jax.random.key(1))["a"]["kernel"], before["a/kernel"])
    assert all(value.dtype == np.float32 for value in before.values())
    np.testing.assert_array_equal(before["a/bias"], np.zeros(4))
    np.testing.assert_array_equal(before["b"], np.full(5, 2.5))


@pytest.mark.parametrize(
    "spec, std",
    [
        (ParamSpec((64, 100), (None, None)), 64**-0.5),
        (ParamSpec((64, 100), (None, None), fan_in=(1,)), 0.1),
        (ParamSpec((4, 8, 100), (None, None, None), fan_in=(0, 1)), 32**-0.5),
        (ParamSpec((64, 100), (None, None), FanIn(2.0)), 0.25),
        (ParamSpec((64, 100), (None, None), Normal(0.02)), 0.02),
    ],
)
def test_standard_deviations(spec, std):
    value = np.asarray(spec.value(KEY))
    assert value.std() == pytest.approx(std, rel=5 / np.sqrt(2 * value.size))
    assert abs(value.mean()) < 5 * std / np.sqrt(value.size)


def test_stacked():
    specs = stacked(SPECS, 3)
    kernel = specs["a"]["kernel"]
    assert kernel.full_shape == (3, 3, 4) and kernel.full_axes == ("layers", "embed", "mlp")
    assert kernel.fan_in_size == 3 and kernel.shape == (3, 4)
    assert count(specs) == 3 * count(SPECS)
    value = np.asarray(kernel.value(KEY))
    assert value.shape == kernel.full_shape
    assert len({layer.tobytes() for layer in value}) == 3
    np.testing.assert_array_equal(specs["b"].value(KEY), np.full((3, 5), 2.5))


def test_axes_must_name_each_dimension():
    with pytest.raises(ValueError, match="axes"):
        ParamSpec((3, 4), ("embed",))
