"""A run's folder belongs to one configuration: it is claimed before anything is written, and never taken over."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.core.config import differences
from jaxlm.core.errors import ConfigError

FILE = "config.json"


def claim_workdir(path: str | os.PathLike[str], config: Mapping[str, Any]) -> Path:
    """Creates the folder and writes ``config.json``, or checks that the one there is the same.

    Args:
      path: of the folder.
      config: the resolved run configuration, JSON-ready.

    Raises:
      ConfigError: in one line, for a folder that cannot be written, that belongs to another configuration (the
        differing fields are named), or that holds files but no ``config.json``.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE).exists():
            saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
            changed = differences(json.loads(json.dumps(config)), saved)
            if changed:
                named = "; ".join(f"{field} {new!r} != {old!r}" for field, (new, old) in changed.items())
                raise ConfigError(f"workdir {folder} belongs to another configuration ({named}); choose another --workdir")
            return folder
        if any(folder.iterdir()):
            raise ConfigError(f"workdir {folder} holds files but no {FILE}; choose an empty or new folder")
        beside = folder / (FILE + ".tmp")
        beside.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, folder / FILE)
    except json.JSONDecodeError as error:
        raise ConfigError(f"workdir {folder}: {FILE} is not JSON ({error}); choose another --workdir") from None
    except OSError as error:
        raise ConfigError(f"workdir {folder} cannot be written: {error.strerror}; choose another --workdir") from None
    return folder
