"""Less-is-Better: the memory that the authors' code had, and the rules one by one."""

import random

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.less_is_better import LessIsBetterTokenizer, Memory

ARTICLES = [
    ["thedogandthecat", "thecatandthedog", "adogandacat", "thedogsawthecat"],
    ["acatsawadog", "thecatsawacat", "adogsawthedog"],
    ["thedogandadog", "thecatandacat", "zthedog"],
]


def test_the_authors_memory():
    """Recorded from the code that goes with Yang et al. 2020, at its defaults, with Python's generator at seed 11."""
    memory, rng = Memory(), random.Random(11)
    memory.begin(ARTICLES[0])
    for n in range(60):
        memory.read(ARTICLES[n % 3], rng)
    expected = "th thecat edog anda and sawa sa dog cat ca ecat do eca nd ga wa ec a c d e g h n o s t w"
    assert memory.chunks == expected.split() and memory.dying == {"w": 9}


def test_candidates_enter_when_they_come_up_again():
    memory = Memory(admit=1.0)
    memory.begin(["ab"])
    memory.read(["ab"], random.Random(0))
    assert sorted(memory.chunks) == ["a", "b"]  # once is not enough
    memory.read(["ab", "ab"], random.Random(0))
    assert "ab" in memory.chunks


def test_unused_chunks_die():
    memory = Memory(life=2)
    memory.begin(["abz"])
    for _ in range(2):
        memory.read(["ab"], random.Random(0))
    assert sorted(memory.chunks) == ["a", "b"]  # a and b were used, z was not


def test_encoding_is_the_longest_chunk():
    tokenizer = LessIsBetterTokenizer(("ab", "abc", "cd"), ())
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode("abcdcdé")] == [b"abc", b"d", b"cd", b"\xc3", b"\xa9"]


def test_training():
    texts = ["the dog and the cat\n", "the cat and the dog\n", "é dog and é cat\n", b"a \xff dog"] * 5
    tokenizer = LessIsBetterTokenizer.train(texts, 256 + 3 + 20, passes=20)
    assert tokenizer.vocab_size == 279 and max(map(len, tokenizer.pieces)) <= 12
    assert len(tokenizer.encode(texts[0])) < len(texts[0]) / 2
    assert LessIsBetterTokenizer.train(texts, 270, passes=20, seed=1).pieces != tokenizer.pieces[:11]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LessIsBetterTokenizer.train(["abab"], 300), "vocab_size can be at most"),
        (lambda: LessIsBetterTokenizer.train(["abab"], 300, passes=0), "passes and lines must be positive"),
        (lambda: LessIsBetterTokenizer.train(["abab"]), "needs a vocab_size"),
        (lambda: Memory(longest=1), "longest must be 2 or more"),
        (lambda: Memory(admit=0.0), "admit must be above 0"),
        (lambda: Memory(forget=1.0), "forget must be"),
        (lambda: Memory(move=2.0), "move must be between 0 and 1"),
        (lambda: Memory(life=0), "life must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
