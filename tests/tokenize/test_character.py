"""Characters, the rarest in bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.character import CharacterTokenizer

TEXT = "naïve façade, ïïï 日本日 🦊"
KNOWN = CharacterTokenizer.train([TEXT])


def test_the_most_frequent_first():
    assert KNOWN.pieces == ("ï", "日", "ç", "本", "🦊")  # 4, 2, then by code point
    assert CharacterTokenizer.train([TEXT], 256 + 2 + 3).pieces == ("ï", "日")
    assert CharacterTokenizer.train([TEXT], 258, specials=()).vocab_size == 258
    assert CharacterTokenizer.train(["abc"]).pieces == ()


@given(st.text(st.sampled_from("aï日本\x80🦊\n")))
def test_one_id_a_character_or_a_byte(text):
    expected = []
    for character in text:
        expected += [256 + KNOWN.pieces.index(character)] if character in KNOWN.pieces else list(character.encode())
    assert KNOWN.encode(text).tolist() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CharacterTokenizer(("éa",)), "'éa' is 2 characters"),
        (lambda: CharacterTokenizer.train([TEXT], 300), "vocab_size can be at most 264"),
        (lambda: CharacterTokenizer.train([TEXT], 100), "at least 260"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
