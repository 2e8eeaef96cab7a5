"""Meshes that do not fit are refused in one line; batches land where their rows belong."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxlm import dist
from jaxlm.core.errors import ConfigError
from jaxlm.dist import processes


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 2, 4), (1, 2, 4)), ((1, 1, -1), (1, 1, 8))],
)
def test_one_size_may_be_all_that_remain(sizes, expected):
    mesh = dist.make_mesh(dist.Mesh(*sizes))
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor")) == expected
    assert mesh.axis_names == ("data", "fsdp", "context", "tensor") and mesh.shape["context"] == 1
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 2, 1), (2, 2, 4), (3, -1, 1), (-1, 16, 1), (-1, 3, 3)])
def test_a_mesh_that_does_not_fit_the_devices(sizes):
    with pytest.raises(ConfigError) as error:
        dist.make_mesh(dist.Mesh(*sizes))
    assert "does not fit 8 devices" in one_line(error)
    assert f"data={sizes[0]} fsdp={sizes[1]} context=1 tensor={sizes[2]}" in one_line(error)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (2, -2, 1)])
def test_sizes_that_mean_nothing(sizes):
    with pytest.raises(ConfigError, match="positive sizes and at most one -1") as error:
        dist.Mesh(*sizes)
    one_line(error)


def test_a_part_of_the_devices():
    mesh = dist.make_mesh(dist.Mesh(1, 2, 2), jax.devices()[4:])
    assert set(mesh.devices.flat) == set(jax.devices()[4:])


def test_each_device_loads_its_rows_only():
    asked = []

    def load(rows: slice) -> dict[str, np.ndarray]:
        asked.append((rows.start, rows.stop))
        return {"tokens": np.arange(16 * 3).reshape(16, 3)[rows], "weights": np.arange(16.0)[rows]}

    batch = dist.global_batch(dist.make_mesh(dist.Mesh(2, 2, 2)), load, 16)
    assert asked == [(0, 4), (4, 8), (8, 12), (12, 16)]  # once each, though two devices hold each slice
    np.testing.assert_array_equal(batch["tokens"], np.arange(48).reshape(16, 3))
    np.testing.assert_array_equal(batch["weights"], np.arange(16.0))
    assert {shard.data.shape for shard in batch["tokens"].addressable_shards} == {(4, 3)}


def test_rows_that_do_not_divide_are_held_by_all():
    batch = dist.global_batch(dist.make_mesh(dist.Mesh(4, 2, 1)), lambda rows: {"x": np.arange(12)[rows]}, 12)
    assert batch["x"].sharding.is_fully_replicated
    np.testing.assert_array_equal(batch["x"], np.arange(12))


def test_a_loader_with_another_number_of_rows():
    with pytest.raises(ConfigError, match="batch 'x': expected 8 rows for 0..7, got 3") as error:
        dist.global_batch(None, lambda rows: {"x": np.arange(3)}, 8)
    one_line(error)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAXLM_COORDINATOR": "localhost"}, "expected host:port or auto, got 'localhost'"),
        ({"JAXLM_COORDINATOR": "localhost:1"}, "JAXLM_PROCESS_ID: expected a whole number"),
        ({"JAXLM_COORDINATOR": "localhost:1", "JAXLM_PROCESS_ID": "0"}, "JAXLM_PROCESS_COUNT: expected a whole number"),
        (
            {"JAXLM_COORDINATOR": "localhost:1", "JAXLM_PROCESS_ID": "2", "JAXLM_PROCESS_COUNT": "2"},
            r"JAXLM_PROCESS_ID 2 is not one of JAXLM_PROCESS_COUNT 2; allowed: 0\.\.1",
        ),
        ({"JAXLM_PROCESS_ID": "0"}, "JAXLM_PROCESS_ID set without JAXLM_COORDINATOR"),
    ],
)
def test_bad_process_variables(environment, message):
    with pytest.raises(ConfigError, match=message) as error:
        processes.initialize(environment)
    one_line(error)


def test_one_process_needs_no_variables():
    processes.initialize({})
    assert jax.process_count() == 1
