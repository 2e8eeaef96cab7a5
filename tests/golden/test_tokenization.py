"""Golden vectors of tokenization, each file in the part it is of.

A part is a module of `tests.golden.tokenization` whose tests are imported here, so that this file is the whole suite.
"""

import re
from pathlib import Path

from tests.golden.tokenization.arithmetic import *  # noqa: F403
from tests.golden.tokenization.bpe import *  # noqa: F403
from tests.golden.tokenization.byte_level import *  # noqa: F403
from tests.golden.tokenization.covers import *  # noqa: F403
from tests.golden.tokenization.delete_gate import *  # noqa: F403
from tests.golden.tokenization.digits import *  # noqa: F403
from tests.golden.tokenization.embedding import *  # noqa: F403
from tests.golden.tokenization.grammar import *  # noqa: F403
from tests.golden.tokenization.healing import *  # noqa: F403
from tests.golden.tokenization.markov import *  # noqa: F403
from tests.golden.tokenization.metrics import *  # noqa: F403
from tests.golden.tokenization.mixture import *  # noqa: F403
from tests.golden.tokenization.patching import *  # noqa: F403
from tests.golden.tokenization.segmentation import *  # noqa: F403
from tests.golden.tokenization.spans import *  # noqa: F403
from tests.golden.tokenization.vocab_scaling import *  # noqa: F403


def test_every_file_is_some_tests():
    """No vector lies there unread: each file begins with a name that a part mentions."""
    folder = Path(__file__).parent
    parts = sorted((folder / "tokenization").glob("*.py"))
    named = set(re.findall(r'files\(golden, "([a-z0-9_]+)"', "".join(p.read_text() for p in parts)))
    stems = {path.stem for path in (folder / "data" / "tokenization").glob("*.json")}
    assert not {stem for stem in stems if not any(stem.startswith(name) for name in named)}
