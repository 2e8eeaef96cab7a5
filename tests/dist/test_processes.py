"""Two processes of four devices each train as one device does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.dist.launch import errors, launch
from tests.dist.runs import assert_close, whole


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_device(tmp_path, first, alone):
    np.savez(tmp_path / "start.npz", **whole(first.params))
    # fsdp and tensor groups lie within a process, the gradients are summed across both
    assert launch(tmp_path, "steps", "2x2x2") == [0, 0], errors(tmp_path)
    seen = [dict(np.load(tmp_path / f"{i}.npz")) for i in range(2)]
    for process in seen:
        np.testing.assert_allclose(process.pop("losses"), alone.losses, rtol=1e-5)
        assert_close(process, alone.gradient)
