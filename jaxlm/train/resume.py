"""May this run continue from that checkpoint? Its config's version and fields are compared before anything compiles."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlm.core.config import differences
from jaxlm.core.errors import ConfigError, shown

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Migration:
    """What changed from one version of the config to the next, and how old metadata is brought there.

    Attributes:
      change: in a few words, for the message: "model.dim became model.width".
      apply: takes the metadata (a copy it may change) and returns it in the next version; None if there is no way.
    """

    change: str
    apply: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def check_version(meta: Mapping[str, Any], current: int, migrations: Mapping[int, Migration]) -> dict[str, Any]:
    """The metadata of a checkpoint as version ``current`` writes it.

    Args:
      meta: as saved, with ``"config_version"``.
      current: the version of this code.
      migrations: by the version they start from.

    Raises `ConfigError`, in one line, for metadata without a version, of a newer version, or of an older one that
    cannot be migrated (saying what changed).
    """
    version = meta.get("config_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ConfigError(f"checkpoint has config_version {version!r}; expected a whole number of at most {current}")
    if version > current:
        raise ConfigError(f"checkpoint has config_version {version}, newer than this jaxlm's {current}; update jaxlm")
    out = copy.deepcopy(dict(meta))
    for start in range(version, current):
        migration = migrations.get(start)
        change = migration.change if migration else "no record of what changed"
        if migration is None or migration.apply is None:
            raise ConfigError(
                f"checkpoint has config_version {version}, this jaxlm {current}, and there is no migration"
                f" from {start} to {start + 1}: {change}"
            )
        out = migration.apply(out) | {"config_version": start + 1}
        log.info("checkpoint config migrated from version %d to %d: %s", start, start + 1, change)
    return out


def check_compatible(new: Mapping[str, Any], saved: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
    """Raises `ConfigError` naming the fields in which a run's config differs from the one it would resume.

    Args:
      new: the config of this run, in the form of `jaxlm.core.config.to_dict`.
      saved: the config in the checkpoint.
      ignore: dotted prefixes of what may differ; "log" covers "log.every" but not "logits".
    """
    changed = changed_fields(new, saved, ignore)
    if changed:
        raise ConfigError(f"resuming with an incompatible config: {changed}")


def changed_fields(new: Mapping[str, Any], saved: Mapping[str, Any], ignore: Sequence[str] = ()) -> str:
    """The differing leaves in one line, ``"model.width 256 != 128; ..."`` (new, then saved), or an empty string."""
    found = differences(json.loads(json.dumps(new)), json.loads(json.dumps(saved)))
    kept = {
        path: pair
        for path, pair in found.items()
        if not any(path == prefix or path.startswith(f"{prefix}.") for prefix in ignore)
    }
    return "; ".join(f"{path} {shown(left)} != {shown(right)}" for path, (left, right) in kept.items())
