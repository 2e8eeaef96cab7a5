"""The files of golden/ssm, and what all parts compare with: values and gradients at the README's tolerances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Data = dict[str, np.ndarray]


def files(golden: Path, prefix: str) -> list[Data]:
    """Every file of a kind; a test names the kind and reads shapes and settings from the file."""
    found = [dict(np.load(path)) for path in sorted((golden / "ssm").glob(f"{prefix}*.npz"))]
    assert found, f"no ssm/{prefix}*.npz in {golden}"
    return found


def close(ours: Any, reference: np.ndarray, *, whole_model: bool = False, name: str = "") -> None:
    """Within ``atol = 2e-5 max|ref|`` (5e-5 of a whole model) and ``rtol = 1e-4``."""
    reference = np.asarray(reference)
    atol = (5e-5 if whole_model else 2e-5) * np.abs(reference).max()
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=1e-4, atol=atol, err_msg=name)


def check_values_and_gradients(
    data: Data, function: Callable[[dict[str, jax.Array]], dict[str, jax.Array]], inputs: list[str]
) -> None:
    """``function`` maps arrays named as ``in_*`` to arrays named as ``out_*``; where the file has cotangents ``cot_*``,
    gradients of ``sum <out, cot>`` are held against every ``grad_*`` of ``inputs``."""
    given = {name: jnp.asarray(data[f"in_{name}"]) for name in inputs}
    wanted = [name for name in inputs if f"grad_{name}" in data]

    def total(chosen: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        result = function({**given, **chosen})
        return sum((result[n] * data[f"cot_{n}"]).sum() for n in result if f"cot_{n}" in data), result

    # Of one program, which costs half of what compiling the values by themselves would add.
    run = jax.grad(total, has_aux=True) if wanted else lambda chosen: ({}, total(chosen)[1])
    gradients, out = jax.jit(run)({name: given[name] for name in wanted or inputs})
    for name, value in out.items():
        close(value, data[f"out_{name}"], name=name)
    for name in wanted:
        assert np.isfinite(gradients[name]).all(), name
        close(gradients[name], data[f"grad_{name}"], name=f"grad_{name}")
