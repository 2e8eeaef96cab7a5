"""The files of golden/tokenization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def files(golden: Path, prefix: str) -> list[dict[str, Any]]:
    """Every file of a kind; a test names the kind and reads vocabularies and settings from the file."""
    found = [json.loads(path.read_text()) for path in sorted((golden / "tokenization").glob(f"{prefix}*.json"))]
    assert found, f"no tokenization/{prefix}*.json in {golden}"
    return found
