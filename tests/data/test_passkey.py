"""Passkey retrieval: the depth is where the pair is, spread over the whole prompt; what can be recalled is marked."""

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.data.tasks.passkey import Passkey


def prompts(task, count):
    for i in range(count):
        example = task.at(20, i)
        yield example, task.decode(example.tokens[1 : example.prompt_length - 1])


def test_depth():
    task, depths = Passkey(pairs=3), []
    for example, words in prompts(task, 300):
        at = [j for j, word in enumerate(words[:-1]) if word == words[-1]]
        assert len(at) == 1 and words[at[0] + 1] == task.decode(example.target[:1])[0]
        assert len({word for word in words if word.startswith("key")}) == 3
        depths.append(task.depth(example))
    assert min(depths) == 0 and max(depths) == 1 and 0.4 < np.mean(depths) < 0.6


def test_copies_can_be_recalled():
    task = Passkey(pairs=2, copies=3)
    for example, words in prompts(task, 50):
        places = [j for j, word in enumerate(words) if word.startswith("key")]
        assert len(places) == 2 * 3 + 1
        stored = {}
        for j in places[:-1]:
            assert stored.setdefault(words[j], words[j + 1]) == words[j + 1]
        recalled = task.recalled(example.tokens[1 : example.prompt_length - 1])
        again = [j for n, j in enumerate(places) if words[j] in [words[i] for i in places[:n]]]
        assert np.flatnonzero(recalled).tolist() == again and len(again) == 2 * 2 + 1


@pytest.mark.parametrize("fields", [{"pairs": 0}, {"pairs": 3, "keys": 2}, {"copies": 0}, {"symbols": 0}])
def test_bad_input(fields):
    with pytest.raises(ConfigError, match="Passkey"):
        Passkey(**fields)
