"""Kernels in interpreters are large programs: forget each file's when it is done, or they add up to gigabytes."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    yield
    jax.clear_caches()
