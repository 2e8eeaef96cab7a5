"""Checkpoints that survive faults: Orbax (its v1 functions) behind this one file.

Orbax moves the bytes: each process writes its own shards in the background, the arrays come back on any mesh, and a step
appears by an atomic rename. What a step is worth is decided here:

* A step counts once Orbax has committed it *and* its manifest of hashes is written (`jaxlm.train.integrity`). An
  asynchronous save gets its manifest from the same background thread, as soon as Orbax is done.
* `Checkpointer.restore` takes the newest step whose files still have their hashes. A damaged or half-written step is named
  in one warning, moved to ``set_aside/`` (never deleted), and the next older one is tried.
* An older step is deleted only after a newer one counts, and a save that fails is a warning, never the end of a run.

The folder (local, or shared by all processes) holds one sub-folder a step, its name the number. Arrays are stored under
their path in the state ("params/embed/table"), so what can be restored does not depend on the classes of the containers.
Of several processes the first alone judges, renames and deletes, and the others take its word (`jaxlm.train.agreement`);
all of them call `save`, `restore`, `restore_params`, `read_meta` and `wait` together.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.train import agreement, integrity

SET_ASIDE = "set_aside"
_STATE = "state"  # the name of the arrays inside an Orbax step
_UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax marks a step it has not committed
_DELETING = "deleting."


@dataclasses.dataclass(frozen=True)
class Restored:
    """A step read back: ``state`` has the structure, dtypes and shardings of the template that was asked for."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores a pytree of arrays with JSON metadata; use it as a context manager.

    Args:
      folder: where the steps live; made by the first save.
      keep: how many of the newest steps stay; None keeps all.
      keep_best: how many of the best by ``best_metric`` stay beside them.
      best_metric: the name of a metric given to `save`, or None.
      best_mode: ``"min"`` if lower is better, else ``"max"``.
      asynchronous: `save` returns once the arrays are copied from the devices, and the files are written meanwhile.
      verify: `restore` compares SHA-256 hashes; without it only that files are there and have their sizes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        keep_best: int = 1,
        best_metric: str | None = None,
        best_mode: str = "min",
        asynchronous: bool = True,
        verify: bool = True,
    ) -> None:
        require(keep is None or keep >= 1, f"Checkpointer: keep must be at least 1 (or None for all), got {keep}")
        require(keep_best >= 0, f"Checkpointer: keep_best must not be negative, got {keep_best}")
        self._folder = Path(folder).absolute()
        self._keep, self._keep_best = keep, keep_best
        self._best_metric, self._best_sign = best_metric, {"min": 1, "max": -1}[choose("best_mode", best_mode, ("min", "max"))]
        self._asynchronous, self._verify = asynchronous, verify
        self._current: int | None = None  # the step this process last saved or restored
        self._saving: _Saving | None = None

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> bool:
        """Saves ``state`` as ``step``; first waits for the save before, if that is still being written.

        Args:
          step: the number of the step.
          state: a pytree of jax or numpy arrays (typed random keys included). It may be donated once this returns.
          meta: JSON kept with it: the data position, the resolved config, versions.
          metrics: numbers by which the best step is found.

        Returns False (after one warning) if the save failed at once, as on a full disk: the steps before it stay. An
        asynchronous save that fails later warns then, and the next `wait` returns False.

        Raises `ConfigError` for a leaf that is no array and `TypeError` for metadata that is not JSON.
        """
        arrays = _flatten(state, (jax.Array, np.ndarray))
        record = {
            "step": step,
            "meta": dict(meta),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "arrays": {name: _describe(array) for name, array in arrays.items()},
        }
        json.dumps(record)
        self.wait()
        if step == self._current:
            return True
        if not agreement.everywhere(self._make_way(step)):
            return False
        self._saving = _Saving(self._folder / str(step), arrays, lambda: self._commit(step, record), self._give_up)
        if self._saving.failed_at_once:
            return False
        return True if self._asynchronous else self.wait()

    def restore(self, template: Any, step: int | None = None) -> Restored | None:
        """The newest good step (or the good step ``step``) as ``template`` describes it; None if there is none.

        Args:
          template: a pytree of arrays or `jax.ShapeDtypeStruct`, whose shardings need not be those of the save. A leaf
            without a sharding goes to the first local device; numpy arrays come back as numpy arrays.
          step: a certain step.

        Steps that turn out damaged or half-written are set aside. Raises `ConfigError` if the template does not have the
        paths, shapes and dtypes that were saved, or if ``step`` is asked for and not good.
        """
        self.wait()
        restored = self._restore(_flatten(template), step, partial=False, set_aside=True)
        if restored is None:
            return None
        self._current = restored.step
        leaves = [restored.state[name] for name in _flatten(template)]
        return dataclasses.replace(restored, state=jax.tree.unflatten(jax.tree.structure(template), leaves))

    def restore_params(self, template: Any, step: int | None = None, *, subtree: str = "params") -> Any:
        """One subtree of the newest good step, for use without the rest; leaves the folder as it is.

        Raises `ConfigError` if there is no good step, or if ``template`` does not fit what was saved.
        """
        self.wait()
        wanted = _flatten({subtree: template})
        restored = self._restore(wanted, step, partial=True, set_aside=False)
        if restored is None:
            raise self._nothing()
        return jax.tree.unflatten(jax.tree.structure(template), [restored.state[name] for name in wanted])

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """The metadata of the newest good step (or of ``step``), read without touching the arrays.

        Raises `ConfigError` if there is no good step.
        """
        self.wait()
        chosen = self._choose(step, hashes=self._verify, set_aside=False)
        if chosen is None:
            raise self._nothing()
        return integrity.read_manifest(self._path(chosen))["meta"]

    def steps(self) -> list[int]:
        """The committed steps, oldest first. Their files are verified only when they are restored."""
        return sorted(self._records())

    def best_step(self) -> int | None:
        """The committed step that is best by ``best_metric``; None if no step has that metric."""
        return next(iter(self._ranked(self._records())), None)

    def wait(self) -> bool:
        """Waits until the save under way counts as committed; False if it (on any process) failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return True
        if not agreement.everywhere(saving.join()):
            return False
        self._current = saving.step
        return True

    def close(self) -> None:
        """Finishes the save under way."""
        self.wait()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Saving, on process 0.

    def _make_way(self, step: int) -> bool:
        """Clears the name of a step about to be written: what is there was cut short, or belongs to a longer run before."""
        if jax.process_index() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for path in self._folders():
                    if _number(path) == step:
                        self._set_aside(path, "the step is being saved again")
            except OSError as error:
                logging.warning("saving step %d failed, the steps before it stay: %s", step, error)
                return False
        return True

    def _commit(self, step: int, record: Mapping[str, Any]) -> None:
        """The second half of a commit, after Orbax's: the manifest, and only then the deletion of older steps."""
        if jax.process_index() == 0:
            integrity.write_manifest(self._path(step), record)
            try:
                self._delete_old()
            except OSError as error:
                logging.warning("old checkpoints could not be deleted: %s", error)

    def _give_up(self, step: int) -> None:
        """Frees what a save that failed here has written (the disk may be full); Orbax never made a step of it."""
        if jax.process_index() == 0:
            for path in self._folder.glob(f"{step}{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self) -> None:
        records = self._records()
        kept = set(sorted(records)[-self._keep :] if self._keep else records) | set(self._ranked(records)[: self._keep_best])
        for step in records.keys() - kept:
            # A rename first: a step that is half deleted when the process dies must not look like a damaged one.
            self._path(step).rename(self._folder / f"{_DELETING}{step}")
        for path in self._folder.glob(f"{_DELETING}*"):
            shutil.rmtree(path, ignore_errors=True)

    # Restoring.

    def _restore(
        self, template: Mapping[str, Any], step: int | None, *, partial: bool, set_aside: bool
    ) -> Restored | None:
        hashes = self._verify
        while True:
            chosen = self._choose(step, hashes=hashes, set_aside=set_aside)
            if chosen is None:
                return None
            record = integrity.read_manifest(self._path(chosen))
            _check_fits(template, record["arrays"], partial, self._path(chosen))
            try:
                return Restored(chosen, _load(self._path(chosen), template, record["arrays"]), record["meta"])
            except Exception:
                if hashes:
                    raise
                hashes = True  # a load that fails is blamed on the files only if their hashes say so

    def _choose(self, step: int | None, *, hashes: bool, set_aside: bool) -> int | None:
        """The newest good step, or ``step`` if that is good; process 0 looks, and the others take its word."""
        found, problem = -1, ""
        if jax.process_index() == 0:
            for path in self._folders():
                if step is not None and _number(path) != step:
                    continue
                try:
                    if path.name != str(_number(path)):
                        raise integrity.Damaged("it was never committed (the save was cut short)")
                    integrity.verify(path, hashes=hashes)
                except integrity.Damaged as error:
                    problem = f": {error}"
                    if set_aside:
                        self._set_aside(path, str(error))
                    else:
                        logging.warning("checkpoint step %d is not used: %s", _number(path), error)
                else:
                    found = _number(path)
                    break
        found = agreement.from_first(found)
        if found >= 0:
            return found
        if step is not None:
            raise ConfigError(f"step {step} of {self._folder} cannot be restored{problem}; good steps: {self.steps()}")
        return None

    def _set_aside(self, path: Path, reason: str) -> None:
        step = _number(path)
        home = self._folder / SET_ASIDE
        home.mkdir(exist_ok=True)
        target, k = home / str(step), 0
        while target.exists():
            target, k = home / f"{step}.{k + 1}", k + 1
        path.rename(target)
        logging.warning("checkpoint step %d is set aside as %s: %s", step, target, reason)

    # Looking.

    def _path(self, step: int) -> Path:
        return self._folder / str(step)

    def _folders(self) -> list[Path]:
        """Every folder that is or was to become a step, newest step first, unfinished ones before the committed."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        folders = [path for path in found if path.name.partition(_UNFINISHED)[0].isdecimal() and path.is_dir()]
        return sorted(folders, key=lambda path: (_number(path), path.name), reverse=True)

    def _records(self) -> dict[int, dict[str, Any]]:
        """The manifests of the committed steps."""
        out = {}
        for path in self._folders():
            if path.name == str(_number(path)):
                try:
                    out[_number(path)] = integrity.read_manifest(path)
                except integrity.Damaged:
                    continue
        return out

    def _ranked(self, records: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Steps that have the metric, best first; of equals the newest; a NaN is worst."""
        scores = {step: record["metrics"].get(self._best_metric) for step, record in records.items()}
        signed = {step: math.inf if math.isnan(x) else self._best_sign * x for step, x in scores.items() if x is not None}
        return sorted(signed, key=lambda step: (signed[step], -step))

    def _nothing(self) -> ConfigError:
        return ConfigError(f"{self._folder} holds no good checkpoint; committed steps: {self.steps()}")


class _Saving:
    """One save under way: Orbax, then the manifest, in a thread of its own. It reports failure and never raises."""

    def __init__(
        self, path: Path, arrays: dict[str, Any], commit: Callable[[], None], give_up: Callable[[int], None]
    ) -> None:
        self.step = int(path.name)
        self._commit, self._give_up = commit, give_up
        self._error: Exception | None = None
        try:
            self._response = ocp.save_checkpointables_async(path, {_STATE: arrays})
        except Exception as error:
            self._fail(error)
        self.failed_at_once = self._error is not None
        self._thread = threading.Thread(target=self._finish, name=f"checkpoint {self.step}")
        self._thread.start()

    def join(self) -> bool:
        self._thread.join()
        return self._error is None

    def _finish(self) -> None:
        if self._error is None:
            try:
                self._response.result()
                self._commit()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._error = error
        reason = str(error).splitlines()[0] if str(error) else ""
        logging.warning("saving step %d failed, the steps before it stay: %s: %s", self.step, type(error).__name__, reason)
        self._give_up(self.step)


def _load(path: Path, template: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {name: _target(template[name]) if name in template else ocp.PLACEHOLDER for name in saved}
    arrays = ocp.load_checkpointables(path, {_STATE: wanted})[_STATE]
    return {name: arrays[name] for name in template}


def _target(leaf: Any) -> Any:
    """What Orbax is to make of a leaf of the template. Without a sharding it would take the one of the save."""
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _flatten(tree: Any, kinds: tuple[type, ...] = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) -> dict[str, Any]:
    """The leaves by path, ``{"params/embed/table": array}``; raises `ConfigError` for one that is not of these kinds."""
    out = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        require(
            isinstance(leaf, kinds),
            f"checkpoint: {name} is of type {type(leaf).__name__}; leaves must be arrays",
        )
        require(name not in out, f"checkpoint: two leaves have the path {name}")
        out[name] = leaf
    if jax.process_count() > 1:
        for name, leaf in out.items():
            require(
                not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable,
                f"checkpoint: {name} lives on one process only; put it on the mesh (replicated, if need be)",
            )
    return out


def _describe(array: Any) -> list[Any]:
    return [str(array.dtype), list(array.shape)]


def _check_fits(template: Mapping[str, Any], saved: Mapping[str, Any], partial: bool, path: Path) -> None:
    """Raises `ConfigError` naming the first leaves in which the template is not what was saved."""
    wrong = [f"{name} is not in the checkpoint" for name in template if name not in saved]
    wrong += [f"{name} is not asked for" for name in saved if not partial and name not in template]
    for name in template.keys() & saved.keys():
        asked, found = _describe(template[name]), list(saved[name])
        if asked != found:
            wrong.append(f"{name} is {found[0]}{found[1]} in the checkpoint, {asked[0]}{asked[1]} was asked for")
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    require(not wrong, f"{path} does not fit: {'; '.join(sorted(wrong)[:3])}{more}")


def _number(path: Path) -> int:
    return int(path.name.partition(_UNFINISHED)[0])

