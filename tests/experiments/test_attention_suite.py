"""The attention benchmark: what it counts and what it compares are the same mask."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.peers import torch_attention
from experiments.suites import attention as suite
from jaxlm.attention.mask import dense

LENGTH = 2048


@pytest.fixture(scope="module")
def shown() -> dict[str, np.ndarray]:
    at = np.arange(LENGTH, dtype=np.int32)[None]
    return {name: np.asarray(dense(mask, at, at))[0, 0] for name, mask in suite.masks(LENGTH).items()}


def test_visible_pairs_are_counted(shown) -> None:
    for name, mask in suite.masks(LENGTH).items():
        assert suite.visible_pairs(mask, LENGTH) == shown[name].sum(), name
        assert 0.01 < shown[name].mean() < 0.9, name


@pytest.mark.torch
def test_the_peers_mask_is_the_same(shown) -> None:
    torch = pytest.importorskip("torch")
    at = torch.arange(LENGTH)
    for name, mask in suite.masks(LENGTH).items():
        rule = torch_attention.mask_rule(name, mask, LENGTH, "cpu")
        assert rule is not None
        np.testing.assert_array_equal(rule(0, 0, at[:, None], at[None]).numpy(), shown[name], err_msg=name)


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "CPU", {**suite.CPU, "lengths": (512,), "heads": 1, "longest": 1024})
    monkeypatch.setattr(suite, "LEAST_SECONDS", 0.0)
    results = suite.run(1, 1, 1)
    assert list(results["races"]) == ["T 512 forward", "T 512 gradient", "T 512 derivatives alone"]
    assert "chunked dense" in suite.table(results) and "T 1024" in suite.table(results)
