"""Kinds of text: two halves of the same text, the same again for a seed, languages where something is missing."""

import gzip

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.data import categories as module
from jaxlm.data.categories import NAMES, PIECE, SCRIPTS, Language, categories, cut, listing
from jaxlm.data.records import Document
from jaxlm.data.text import Corpus


def some(seed=0, names=("code", "docstrings", "generated_5"), **options):
    return categories(seed, names=names, size=60_000, least=20_000, **options)


def test_the_halves_are_pieces_of_one_text():
    for category in some():
        halves = category.train, category.count
        sizes = [sum(map(len, half)) for half in halves]
        assert abs(sizes[0] - sizes[1]) <= 2 * PIECE and 50_000 < sum(sizes) <= 60_000
        assert max(len(piece) for half in halves for piece in half) <= PIECE
        assert all(piece.decode() for half in halves for piece in half)  # cut between characters


def test_a_seed_deals_the_same_pieces_otherwise():
    first, again, other = some(0), some(0), some(1)
    assert first == again
    for a, b in zip(first[:2], other[:2], strict=True):
        assert a.train != b.train and sorted(a.train + a.count) == sorted(b.train + b.count)
    assert first[2].train != other[2].train  # a language says something else
    assert listing(first) != listing(other)


def test_code_and_docstrings_come_apart(monkeypatch):
    source = b'"""A module.\n\nSay."""\n\nclass C:\n    "One."\n\n    def f(self):\n        "Two."\n        return 1\n'
    found = Corpus("", (Document("broken.py", b"def"), Document("m.py", source)))
    monkeypatch.setattr(module.corpus, "read", lambda source: found)
    assert list(module._docstrings(None)) == [b"A module.\n\nSay.\n\nOne.\n\nTwo.\n\n"]
    assert list(module._code(None)) == [b"\nclass C:\n\n    def f(self):\n        return 1\n"]


def test_what_is_missing_is_generated(tmp_path):
    found = some(names=("licences", "man_de", "man_fr"), licences=tmp_path / "no", manuals=tmp_path / "no")
    assert [category.name for category in found] == ["generated_0", "generated_1", "generated_2"]
    assert "0 bytes of licences are too few: generated language 0 in latin" in listing(found)
    scripts = [category.train[0].decode().split()[0][0] for category in found]
    assert [min(SCRIPTS.values(), key=lambda start: abs(ord(c) - start)) for c in scripts] == list(SCRIPTS.values())


def test_manual_pages_lose_their_markup(tmp_path):
    page = (
        '.TH X 1\n.\\" no\nVerf\\(:ugbar \\fBfett\\fR, l\\*(Aq\\(^ile fran\\(,caise \\-x \\[co]\nzwei\\~drei\n'
        + "Zeile\n" * 5000
    )
    folder = tmp_path / "de" / "man1"
    folder.mkdir(parents=True)
    (folder / "x.1.gz").write_bytes(gzip.compress(page.encode()))
    (folder / "y.1.gz").write_bytes(gzip.compress("Ü".encode("latin-1")))  # another encoding, passed over
    (folder / "z.1.gz").write_bytes(b"\x1f\x8b broken")
    (found,) = some(names=("man_de",), manuals=str(tmp_path))
    text = b"".join(sorted(found.train + found.count)).decode()
    assert found.name == "man_de" and "Verfügbar fett, l'île française -x ©\nzwei drei\nZeile" in text
    assert "TH" not in text and "\\" not in text


def test_cut():
    text = b"".join(b"%d\n" % i for i in range(5000)) + b"x" * 5000 + b"\nend"
    pieces = cut(text)
    assert b"".join(pieces) == text and [len(piece) for piece in pieces if len(piece) > PIECE] == [5001]
    assert cut(b"") == [] and cut(b"a") == [b"a"]


def test_zipf_and_scripts():
    """The stems' frequencies fall as rank ** -1.05, and a letter takes the bytes of its script."""
    for script, size in (("latin", 1), ("cyrillic", 2), ("cjk", 3)):
        language = Language(7, script, suffixes=0)
        stems, endings = language.words
        words = language.text(200_000).decode().split()
        assert len(set(stems)) == 80 and endings == ("",) and set(words) <= set(stems)
        counts = np.array([words.count(stem) for stem in stems[:10]])
        slope = np.polyfit(np.log(np.arange(1, 11)), np.log(counts), 1)[0]
        assert -1.05 - 0.15 < slope < -1.05 + 0.15
        assert {len(c.encode()) for word in words for c in word} == {size}
    with_endings = Language(7, suffixes=4)
    assert len(with_endings.words[1]) == 5
    assert set(Language(7).words[0]) != set(Language(8).words[0]) and len(Language(7).text(1000)) <= 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: categories(names=("code", "poems")), "unknown category 'poems'; .*allowed: c_headers, code"),
        (lambda: categories(size=1000), "expected 4096 <= least <= size"),
        (lambda: some(names=("generated_1", "generated_1")), "categories repeat"),
        (lambda: Language(0, "runes"), "unknown script 'runes'"),
        (lambda: Language(0, forms=0), "Language.forms: expected 1..1000, got 0"),
        (lambda: Language(0, suffixes=10), "Language.suffixes: expected 0..9, got 10"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_names():
    assert len(NAMES) == 8 and NAMES[:4] == ("code", "docstrings", "c_headers", "licences")
