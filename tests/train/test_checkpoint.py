"""Checkpoints come back bit for bit, on any mesh, however asynchronous the save; retention and refusals."""

from __future__ import annotations

import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.core import compat
from jaxlm.core.errors import ConfigError
from jaxlm.train import integrity
from jaxlm.train.checkpoint import SET_ASIDE, Checkpointer


def make_state(seed: int = 0, sharding: jax.sharding.Sharding | None = None) -> dict:
    """Parameters, an optimizer's named tuples, a typed key, scalars, bfloat16, an empty branch and a numpy array."""
    normal = np.random.default_rng(seed).normal(size=(64, 32)).astype(np.float32)
    params = {"a": {"w": jax.device_put(jnp.asarray(normal), sharding)}, "b": jnp.full(3, seed + 0.1, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return {
        "params": params,
        "optimizer": optimizer,
        "key": jax.random.key(seed),
        "step": jnp.int32(seed),
        "ema": None,
        "host": np.arange(4, dtype=np.int64) + seed,
    }


def bits(tree: object) -> list[bytes]:
    raw = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x).tobytes() for x in raw]


def abstract(tree: object) -> object:
    return jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip_is_bitwise(tmp_path, asynchronous):
    state = make_state(3)
    meta = {"config": {"width": 8, "names": ["x", None, True]}, "data": {"position": 2**60}, "rate": 0.1}
    with Checkpointer(tmp_path / "ck", asynchronous=asynchronous) as checkpointer:
        assert checkpointer.restore(abstract(state)) is None
        assert checkpointer.save(7, state, meta)
    with Checkpointer(tmp_path / "ck") as checkpointer:
        assert checkpointer.read_meta() == meta
        restored = checkpointer.restore(abstract(state))
    assert restored is not None and restored.step == 7 and restored.meta == meta
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert bits(restored.state) == bits(state)
    assert isinstance(restored.state["host"], np.ndarray)


def test_donated_state_is_saved_as_it_was(tmp_path):
    """An asynchronous save must not see what later steps do to the buffers."""
    state = {"w": jnp.arange(2**18, dtype=jnp.float32), "n": np.zeros(8)}
    update = jax.jit(lambda w: w * 1.5 + 1, donate_argnums=0).lower(state["w"]).compile()
    expected = bits(state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        w = state["w"]
        for _ in range(20):
            w = update(w)
        state["n"] += 1
        jax.block_until_ready(w)
        restored = checkpointer.restore({"w": w, "n": state["n"]})
    assert restored is not None and bits(restored.state) == expected


def test_restore_onto_another_mesh(tmp_path):
    before = NamedSharding(compat.make_mesh((8,), ("x",)), P("x"))
    after = NamedSharding(compat.make_mesh((2, 4), ("x", "y")), P("y", "x"))
    state = {"w": jax.device_put(jnp.arange(64.0 * 32).reshape(64, 32), before)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        for sharding in (after, None):
            restored = checkpointer.restore({"w": jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=sharding)})
            assert restored is not None and bits(restored.state) == bits(state)
            devices = after.device_set if sharding else {jax.devices()[0]}
            assert restored.state["w"].sharding.device_set == devices
            assert sharding is None or restored.state["w"].sharding.is_equivalent_to(sharding, 2)


def test_parameters_alone(tmp_path):
    state = make_state(1)
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ConfigError, match="holds no good checkpoint"):
            checkpointer.restore_params(abstract(state["params"]))
        checkpointer.save(1, state, {})
        checkpointer.save(2, make_state(2), {})
        assert bits(checkpointer.restore_params(abstract(state["params"]), step=1)) == bits(state["params"])
        assert bits(checkpointer.restore_params(abstract(state["params"]))) == bits(make_state(2)["params"])
        assert bits(checkpointer.restore_params(state["optimizer"], 1, subtree="optimizer")) == bits(state["optimizer"])
        part = checkpointer.restore_part({"key": state["key"], "params": {"b": state["params"]["b"]}}, 1)
        assert bits(part) == bits({"key": state["key"], "params": {"b": state["params"]["b"]}})


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: float("nan"), 5: 2.0, 6: 3.0}
    with Checkpointer(tmp_path, keep=2, keep_best=1, best_metric="loss") as checkpointer:
        for step, loss in losses.items():
            assert checkpointer.save(step, {"x": jnp.full(4, step)}, {}, {"loss": loss, "other": 0.0})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 5, 6]
        assert checkpointer.best_step() == 2
        best = checkpointer.restore({"x": jnp.zeros(4, jnp.int32)}, step=2)
    assert best is not None and best.state["x"][0] == 2
    assert Checkpointer(tmp_path, best_metric="loss", best_mode="max").best_step() == 6
    assert Checkpointer(tmp_path, best_metric="absent").best_step() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]


def test_an_older_step_outlives_an_uncommitted_newer_one(tmp_path, monkeypatch):
    """With keep=1, step 1 must stay until the manifest of step 2 stands."""
    written, go = threading.Event(), threading.Event()
    write = integrity.write_manifest

    def slow(folder, record):
        written.set()
        assert go.wait(30)
        write(folder, record)

    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, {"x": jnp.zeros(2)}, {})
        checkpointer.wait()
        monkeypatch.setattr(integrity, "write_manifest", slow)
        checkpointer.save(2, {"x": jnp.ones(2)}, {})
        assert written.wait(30)
        assert (tmp_path / "2").is_dir() and checkpointer.steps() == [1]
        go.set()
        assert checkpointer.wait() and checkpointer.steps() == [2]


def test_a_failing_manifest_is_a_failed_save(tmp_path, monkeypatch, caplog):
    def full(folder, record):
        raise OSError(28, "No space left on device")

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": jnp.zeros(2)}, {})
        checkpointer.wait()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(integrity, "write_manifest", full)
            assert checkpointer.save(2, {"x": jnp.ones(2)}, {})
            assert not checkpointer.wait()
        assert "saving step 2 failed, the steps before it stay: [Errno 28]" in caplog.text
        assert checkpointer.steps() == [1]
        assert checkpointer.save(2, {"x": jnp.ones(2)}, {}) and checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
    assert (tmp_path / SET_ASIDE / "2").is_dir()


def test_saving_the_current_step_again_writes_nothing(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": jnp.zeros(2)}, {})
        checkpointer.wait()
        inode = (tmp_path / "1" / integrity.MANIFEST).stat().st_ino
        assert checkpointer.save(1, {"x": jnp.zeros(2)}, {})
        assert checkpointer.wait() and (tmp_path / "1" / integrity.MANIFEST).stat().st_ino == inode
    with Checkpointer(tmp_path) as other:  # another run that comes to the same number keeps what was there
        other.save(1, {"x": jnp.ones(2)}, {})
    assert (tmp_path / SET_ASIDE / "1" / integrity.MANIFEST).exists()
    assert np.all(Checkpointer(tmp_path).restore_params(jnp.zeros(2), subtree="x") == 1)


def test_a_reader_leaves_the_folder_as_it_is(tmp_path, caplog):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": jnp.zeros(2)}, {"n": 1})
    (tmp_path / "2").mkdir()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    names = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING):
        reader = Checkpointer(tmp_path)
        assert reader.read_meta() == {"n": 1} and reader.restore_params(jnp.ones(2), subtree="x")[0] == 0
    assert sorted(tmp_path.rglob("*")) == names
    assert "step 2 is not used: manifest.json is missing" in caplog.text


def test_an_exception_in_the_loop_still_finishes_the_save(tmp_path):
    with pytest.raises(KeyError), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": jnp.zeros(2)}, {})
        raise KeyError("the loop")
    assert Checkpointer(tmp_path).steps() == [1]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"x": jnp.zeros(3)}, r"x is float32\[2\] in the checkpoint, not float32\[3\]"),
        (lambda t: t | {"x": jnp.zeros(2, jnp.int32)}, r"x is float32\[2\] in the checkpoint, not int32\[2\]"),
        (lambda t: t | {"z": jnp.zeros(3)}, "z is not in the checkpoint"),
        (lambda t: {"x": t["x"]}, "y/0 is not asked for"),
        (lambda t: t | {"key": jax.random.key(0, impl="rbg")}, r"key is key<fry>\[\] in the checkpoint, not key<rbg>"),
        (lambda t: t | {"x": 1.5}, "x is a float; leaves must be arrays"),
        (lambda t: t | {"y/0": t["x"]}, "two leaves have the path y/0"),
    ],
)
def test_a_template_that_does_not_fit(tmp_path, change, message):
    state = {"x": jnp.zeros(2), "y": [jnp.ones(1)], "key": jax.random.key(0)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        with pytest.raises(ConfigError, match=message) as error:
            checkpointer.restore(change(state))
    assert "\n" not in str(error.value)
    assert not (tmp_path / SET_ASIDE).exists()  # the step is good: the template was not


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="keep must be at least 1"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(ConfigError, match="keep_best must not be negative"):
        Checkpointer(tmp_path, keep_best=-1)
    with pytest.raises(ConfigError, match="unknown best_mode 'mim'; did you mean 'min'"):
        Checkpointer(tmp_path, best_mode="mim")
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpointer.save(1, {"x": jnp.zeros(2)}, {"a": {1, 2}})
    with pytest.raises(ConfigError, match="x is a ShapeDtypeStruct"):
        checkpointer.save(1, {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}, {})
    with pytest.raises(ConfigError, match="holds no good checkpoint"):
        checkpointer.read_meta()
    with pytest.raises(ConfigError, match=r"step 3 of .* cannot be restored; good steps: \[\]"):
        checkpointer.restore({"x": jnp.zeros(2)}, step=3)


def test_manifest_guards_itself(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    integrity.write_manifest(tmp_path, {"metrics": {"loss": 1.5}, "by_number": {10: "a", 9: "b"}})
    record = integrity.verify(tmp_path)
    assert record["files"] == {"file": [3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]}
    assert record["by_number"] == {"10": "a", "9": "b"}
    manifest = tmp_path / integrity.MANIFEST
    manifest.write_text(manifest.read_text().replace("1.5", "1.4"))
    with pytest.raises(integrity.Damaged, match="does not have the hash it claims"):
        integrity.verify(tmp_path)
    manifest.write_text("{")
    with pytest.raises(integrity.Damaged, match="cannot be read"):
        integrity.verify(tmp_path)
