"""Checkpoints that survive faults: Orbax (its v1 functions) behind this one file.

Orbax moves the bytes: each process writes its own shards in the background, the arrays come back on any mesh, and a
step appears by an atomic rename. What a step is worth is decided here:

* A step counts once Orbax has committed it *and* its manifest of hashes is written (`jaxlm.train.integrity`). An
  asynchronous save gets its manifest from the same background thread, as soon as Orbax is done.
* `Checkpointer.restore` takes the newest step whose files still have their hashes. A damaged or half-written step is
  named in one warning, moved to ``set_aside/`` (never deleted), and the next older one is tried.
* An older step is deleted only after a newer one counts; a save that fails is a warning, never the end of a run.

The folder (local, or shared by all processes) holds one sub-folder a step, its name the number; arrays are stored by
their path in the state (`jaxlm.train.leaves`). Of several processes the first alone judges, renames and deletes, and
the others take its word (`jaxlm.train.agreement`); all of them call `save`, `wait`, `read_meta` and the `restore`
functions together.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.train import agreement, integrity, leaves

log = logging.getLogger(__name__)

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
        self._best_metric = best_metric
        self._best_sign = 1 if choose("best_mode", best_mode, ("min", "max")) == "min" else -1
        self._asynchronous, self._verify = asynchronous, verify
        self._current: int | None = None  # the step this process last saved or restored
        self._saving: _Saving | None = None
        logging.getLogger("absl").addFilter(_is_no_echo)

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
        arrays = leaves.flatten(state, (jax.Array, np.ndarray))
        record = {
            "step": step,
            "meta": dict(meta),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "arrays": {name: leaves.describe(array) for name, array in arrays.items()},
        }
        record = json.loads(json.dumps(record))  # fails here if at all, and no longer follows what the caller changes
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

        Steps that turn out damaged or half-written are set aside. Raises `ConfigError` if the template does not have
        the paths, shapes and dtypes that were saved, or if ``step`` is asked for and not good.
        """
        self.wait()
        restored = self._restore(template, step, partial=False, set_aside=True)
        if restored is not None:
            self._current = restored.step
        return restored

    def restore_part(self, template: Any, step: int | None = None) -> Any:
        """Those arrays of the newest good step that ``template`` names, ``{"params": ..., "optimizer": {"ema": ...}}``.

        For use without the rest; leaves the folder as it is. Raises `ConfigError` if there is no good step, or if
        ``template`` does not fit what was saved.
        """
        self.wait()
        restored = self._restore(template, step, partial=True, set_aside=False)
        if restored is None:
            raise self._nothing()
        return restored.state

    def restore_params(self, template: Any, step: int | None = None, *, subtree: str = "params") -> Any:
        """One branch of the state, as `restore_part` reads it."""
        return self.restore_part({subtree: template}, step)[subtree]

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """The metadata of the newest committed step (or of ``step``), without the arrays; the manifest vouches for it.

        Raises `ConfigError` if there is none.
        """
        return self._record(step)["meta"]

    def read_arrays(self, step: int | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and shape of every array by path, of the step that `read_meta` would read."""
        return {name: (dtype, tuple(shape)) for name, (dtype, shape) in self._record(step)["arrays"].items()}

    def _record(self, step: int | None) -> dict[str, Any]:
        self.wait()
        chosen = self._choose(step, hashes=False, set_aside=False)
        if chosen is None:
            raise self._nothing()
        return integrity.read_manifest(self._path(chosen))

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._saving is not None:
            self._saving.join()  # without `agreement`: an error may be on this process alone

    # Saving.

    def _make_way(self, step: int) -> bool:
        """Clears the name of a step about to be written: what is there was cut short, or is of a longer run before."""
        if jax.process_index() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for path in self._folders():
                    if _number(path) == step:
                        self._set_aside(path, "the step is being saved again")
            except OSError as error:
                log.warning("saving step %d failed, the steps before it stay: %s", step, error)
                return False
        return True

    def _commit(self, step: int, record: Mapping[str, Any]) -> None:
        """The second half of a commit, after Orbax's: the manifest, and only then the deletion of older steps."""
        if jax.process_index() == 0:
            integrity.write_manifest(self._path(step), record)
            try:
                self._delete_old()
            except OSError as error:
                log.warning("old checkpoints could not be deleted: %s", error)

    def _give_up(self, step: int) -> None:
        """Frees what a save that failed here has written (the disk may be full); Orbax never made a step of it."""
        if jax.process_index() == 0:
            for path in self._folder.glob(f"{step}{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self) -> None:
        records = self._records()
        newest = sorted(records)[-self._keep :] if self._keep else records
        for step in records.keys() - {*newest, *self._ranked(records)[: self._keep_best]}:
            # A rename first: a step that is half deleted when the process dies must not look like a damaged one.
            self._path(step).rename(self._folder / f"{_DELETING}{step}")
        for path in self._folder.glob(f"{_DELETING}*"):
            shutil.rmtree(path, ignore_errors=True)

    # Restoring.

    def _restore(self, template: Any, step: int | None, *, partial: bool, set_aside: bool) -> Restored | None:
        wanted, hashes = leaves.flatten(template), self._verify
        while True:
            chosen = self._choose(step, hashes=hashes, set_aside=set_aside)
            if chosen is None:
                return None
            record = integrity.read_manifest(self._path(chosen))
            leaves.check_fits(wanted, record["arrays"], partial, self._path(chosen))
            try:
                arrays = _load(self._path(chosen), wanted, record["arrays"])
                state = jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted])
                return Restored(chosen, state, record["meta"])
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
                        log.warning("checkpoint step %d is not used: %s", _number(path), error)
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
        log.warning("checkpoint step %d is set aside as %s: %s", step, target, reason)

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
        name = self._best_metric
        scores = {step: record["metrics"][name] for step, record in records.items() if name in record["metrics"]}
        cost = {step: math.inf if math.isnan(score) else self._best_sign * score for step, score in scores.items()}
        return sorted(cost, key=lambda step: (cost[step], -step))

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
            self._response = ocp.save_checkpointables_async(str(path), {_STATE: arrays})
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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        log.warning("saving step %d failed, the steps before it stay: %s", self.step, reason)
        self._give_up(self.step)


def _load(path: Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    targets = {name: leaves.target(wanted[name]) if name in wanted else ocp.PLACEHOLDER for name in saved}
    return ocp.load_checkpointables(str(path), {_STATE: targets})[_STATE]


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Drops what each of Orbax's threads says of a failed save (some hundred lines): `_Saving` reports it in one."""
    return "_SignalingThread.run() raised an exception" not in str(record.msg)


def _number(path: Path) -> int:
    return int(path.name.partition(_UNFINISHED)[0])
