"""Golden vectors of tokenization, each file in the part it is of.

A part is a module of `tests.golden.tokenization` whose tests are imported here, so that this file is the whole suite.
"""

import re
from pathlib import Path


def test_every_file_is_some_tests():
    """No vector lies there unread: each file begins with a name that a part mentions."""
    folder = Path(__file__).parent
    parts = sorted((folder / "tokenization").glob("*.py"))
    named = set(re.findall(r'files\(golden, "([a-z0-9_]+)"', "".join(p.read_text() for p in parts)))
    unread = {p.stem for p in (folder / "data" / "tokenization").glob("*.json") if not any(p.stem.startswith(n) for n in named)}
    assert not unread
