"""A run's folder belongs to one configuration: it is claimed before anything is written, and never taken over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.train.integrity import temporary_name, write_atomically
from jaxlm.train.resume import changed_fields

FILE = "config.json"


def claim_workdir(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    ignore: Sequence[str] = (),
    renew: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Path:
    """Creates the folder and writes ``config.json``, or checks that the one there is of the same run.

    In a run of several processes, the first alone calls this.

    Args:
      path: of the folder.
      config: the resolved run configuration, JSON-ready.
      ignore: dotted prefixes of fields that a run may change when it is resumed; they are then written anew.
      renew: makes of a configuration that an earlier version wrote one of this version (`jaxlm.core.config.renewed`).

    Raises:
      ConfigError: in one line, for a folder that cannot be written, that belongs to another configuration (the
        differing fields are named), or that holds files but no ``config.json``.
    """
    folder = Path(path)
    text = json.dumps(config, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE).exists():
            saved = renew(json.loads((folder / FILE).read_bytes()))
            changed = changed_fields(json.loads(text), saved, ignore)
            if changed:
                raise ConfigError(
                    f"workdir {folder} belongs to another configuration ({changed}); choose another --workdir"
                )
        elif any(found.name != temporary_name(FILE) for found in folder.iterdir()):
            raise ConfigError(f"workdir {folder} holds files but no {FILE}; choose an empty or new folder")
        write_atomically(folder / FILE, text)  # the same or not: a folder that is read-only by now is found out
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"workdir {folder}: {FILE} is not JSON ({error}); choose another --workdir") from None
    except OSError as error:
        raise ConfigError(f"workdir {folder} cannot be written: {error.strerror}; choose another --workdir") from None
    return folder
