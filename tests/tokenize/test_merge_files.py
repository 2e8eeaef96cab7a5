"""Merge lists from files: every form, and exactly those merges left out that no text fires."""

import itertools
import json

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.bpe_files import to_hf
from jaxlm.tokenize.byte_alphabet import printed
from jaxlm.tokenize.merge_files import read_merges
from jaxlm.tokenize.mixture_inference import pair_counts_by_step, symbols_of

BPE = BpeTokenizer.train(["die Katze und der Kater, die Katzen"] * 3, vocab_size=256 + 12 + 3, split=("gpt2",))


def lines(tokenizer, where):
    pieces = tokenizer.token_bytes
    text = "#version: 0.2\n" + "".join(f"{printed(pieces[a])} {printed(pieces[b])}\n" for a, b in tokenizer.merges)
    where.write_text(text, encoding="utf-8")


def test_every_form_gives_the_same(tmp_path):
    to_hf(BPE, tmp_path / "folder")
    lines(BPE, tmp_path / "merges.txt")
    BPE.save(tmp_path / "ours.json")
    (tmp_path / "old").mkdir()
    content = json.loads((tmp_path / "folder" / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "old" / "tokenizer.json").write_text(json.dumps(content))
    for path in ("folder", "folder/tokenizer.json", "merges.txt", "ours.json", "old"):
        found = read_merges(tmp_path / path)
        assert (found.merges, found.characters, found.redundant) == (BPE.merges, (), ()), path
        assert found.split == ("gpt2",)
    content["pre_tokenizer"] = {"type": "Whitespace"}  # of a kind whose rule is not ours to name
    (tmp_path / "old" / "tokenizer.json").write_text(json.dumps(content))
    assert read_merges(tmp_path / "old").split is None and read_merges(tmp_path / "old").merges == BPE.merges


def test_lists_of_characters(tmp_path):
    """As Hugging Face writes a SentencePiece vocabulary: every way to put a token together is a merge."""
    tokens = ["▁d", "ie", "▁die", "ét", "▁é", "▁ét"]
    ways = [(token[:i], token[i:]) for token in tokens for i in range(1, len(token))]
    vocabulary = {*tokens, *"▁dieét"}
    merges = [way for way in ways if set(way) <= vocabulary]
    assert len(merges) > len(tokens)
    model = {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": [list(way) for way in merges]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": None}))
    found = read_merges(tmp_path)
    assert found.characters == ("é".encode(),) and found.split == ("space",)
    pieces = [*(bytes([byte]) for byte in range(256)), *found.characters]
    for left, right in found.merges:
        pieces.append(pieces[left] + pieces[right])
    assert [piece.decode() for piece in pieces[257:]] == [token.replace("▁", " ") for token in tokens]
    assert len(found.redundant) + len(found.merges) == len(merges)


def test_redundant_merges_are_those_that_no_text_fires(tmp_path, length=6):
    """All texts of a, b, c up to a length, against a list in which many merges never fire."""
    tokens = ["a", "b", "c", "ab", "bc", "abc", "ca", "abca", "bcab", "aa", "aab"]
    pairs = [
        (left, right) for whole in tokens for left, right in itertools.product(tokens, tokens) if left + right == whole
    ]
    (tmp_path / "merges.txt").write_text("\n".join(f"{left} {right}" for left, right in pairs))
    found = read_merges(tmp_path / "merges.txt")
    fired = set()
    for n in range(2, length + 1):
        for text in itertools.product("abc", repeat=n):
            pieces = list(text)
            for number, (left, right) in enumerate(pairs):
                out, at = [], 0
                while at < len(pieces):
                    two = pieces[at : at + 2] == [left, right]
                    fired |= {number} if two else set()
                    out, at = [*out, left + right if two else pieces[at]], at + 1 + two
                pieces = out
    assert fired == set(range(len(pairs))) - set(found.redundant) and len(found.redundant) == 3
    words = {symbols_of("".join(text).encode(), {}): 1 for text in itertools.product("abc", repeat=length)}
    changes = pair_counts_by_step(found.merges, words)
    assert {tuple(pair) for pair in zip(changes.left.tolist(), changes.right.tolist(), strict=True)} >= set(
        found.merges
    )


def write(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", b"a b\na b c\n", "merges.txt: line 2 is 'a b c', not two tokens"),
        ("merges.txt", b"#version: 0.2\n\na\n", "line 3 is 'a', not two tokens"),
        ("merges.txt", b"i n</w>\n", "merges with </w> are not supported"),
        ("merges.txt", b"#version: 0.2\n", "there are no merges in it"),
        ("merges.txt", b"ab c\n", "none of its 1 merges can ever happen"),
        ("merges.txt", b"\xff\xfe", "is not UTF-8"),
        ("tokenizer.json", b"{", "is not JSON"),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "merges": ["\ud800 b"]}},
            r"a merge is of \['.ud800'\], which is no",
        ),
        ("tokenizer.json", [], "expected a JSON object, got list"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, r"its model \(Unigram\) has no merges"),
        ("tokenizer.json", {"model": {"type": "BPE", "merges": ["a b", "a"]}}, "merge 1 is 'a', not two tokens"),
        ("tokenizer.json", {"model": {"merges": ["a b"], "end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
        (
            "ours.json",
            {"format": "jaxlm.tokenizer/1", "name": "byte", "args": {}},
            "a 'byte' tokenizer has no merge list",
        ),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_merges(write(tmp_path, name, content))
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer.json or merges.txt in this folder"):
        read_merges(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_merges(tmp_path / "no.txt")
