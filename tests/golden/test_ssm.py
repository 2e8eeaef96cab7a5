"""Golden vectors of state-space and recurrent mixers: values and gradients of every file, each in the part it is of.

A part is a module of `tests.golden.ssm` whose tests are imported here, so that this file is the whole suite.
"""

import re
from pathlib import Path

from tests.golden.ssm.delta import *  # noqa: F403
from tests.golden.ssm.diagonal import *  # noqa: F403
from tests.golden.ssm.other import *  # noqa: F403
from tests.golden.ssm.s4 import *  # noqa: F403
from tests.golden.ssm.scalar_decay import *  # noqa: F403
from tests.golden.ssm.vector_decay import *  # noqa: F403


def test_every_file_is_some_tests():
    """No vector lies there unread: each file begins with a name that a part mentions."""
    folder = Path(__file__).parent
    named = set(re.findall(r'"([a-z0-9_]+)["{]', "".join(p.read_text() for p in sorted((folder / "ssm").glob("*.py")))))
    unread = {p.stem for p in (folder / "data" / "ssm").glob("*.npz") if not any(p.stem.startswith(n) for n in named)}
    assert not unread
