"""Files of ranks: the library's encoding is that of our BPE with the same merges, and what is wrong with a file."""

import base64
import builtins
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import EOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.tiktoken_file import TiktokenTokenizer

tiktoken = pytest.importorskip("tiktoken")

TEXTS = ["the quick brown fox jumps over the lazy dog, naïvely, again and again", "日本語 fox"] * 2
BPE = BpeTokenizer.train(TEXTS, 300, split=("gpt2",), specials=())


def lines(tokens):
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "our.tiktoken"
    path.write_text(lines(BPE.token_bytes))
    return str(path)


@given(st.one_of(st.text(), st.lists(st.sampled_from(TEXTS[0].split())).map(" ".join)))
def test_as_bpe_with_the_same_tokens(path, text):
    assert TiktokenTokenizer(path).encode(text).tolist() == BPE.encode(text).tolist()


def test_bytes_and_special_tokens(path):
    tokenizer = TiktokenTokenizer(path, specials=(("<|endoftext|>", 310), (EOS, 310)))
    assert tokenizer.vocab_size == 311 and tokenizer.token_bytes[:300] == BPE.token_bytes
    assert tokenizer.token_bytes[300:] == (b"",) * 11 and tokenizer.stop_ids == (310,)
    assert tokenizer.encode("fox", eos=True)[-1] == 310 and 310 not in tokenizer.encode("<|endoftext|><eos>")
    for data in [bytes(range(256)), b"\xff the \xe6\x97 fox"]:
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert TiktokenTokenizer(path, pattern=r"\S|\s+").encode("the").tolist() == list(b"the")  # nothing merges across


def test_save_and_load(path, tmp_path):
    tokenizer = TiktokenTokenizer(path, pattern=r"\w+|\W+", specials=((EOS, 400),))
    tokenizer.save(tmp_path / "t.json")
    loaded = TiktokenTokenizer.load(tmp_path / "t.json")
    assert loaded == tokenizer and hash(loaded) == hash(tokenizer) and loaded.special_ids == {EOS: 400}
    assert loaded.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()
    assert loaded != TiktokenTokenizer(path)


BYTES = [bytes([b]) for b in range(256)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(BYTES[1:]), "1 of the 256 bytes are missing"),
        (lines(BYTES) + "YWI=\n", "expected a token in base64 and its rank"),
        (lines(BYTES) + "YWI 256\n", "bad:257: expected a token in base64"),
        (lines(BYTES) + "YWI= x\n", "bad:257: expected a token in base64"),
        (lines(BYTES) + "YWI= 3\n", "two tokens have the same rank"),
        (lines(BYTES) + "YWI= -1\n", "a negative rank"),
        (lines(BYTES + [b"ab", b"ab"]), "bad:258: the token b'ab' is there twice"),
        (json.dumps({"format": "jaxlm.tokenizer/1", "name": "tiktoken", "args": {}}), "neither a file of ranks"),
        ("", "256 of the 256 bytes are missing"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "bad").write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        TiktokenTokenizer(str(tmp_path / "bad"))
    assert "\n" not in str(error.value)


def test_bad_input(path, monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tiktoken":
            raise ImportError
        return imported(name, *args, **kwargs)

    def bare():
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", without)
            TiktokenTokenizer(path)

    for call, message in [
        (lambda: TiktokenTokenizer("no/such"), "cannot read no/such: No such file"),
        (lambda: TiktokenTokenizer().encode("a"), "name a file of ranks"),
        (lambda: TiktokenTokenizer(path, specials=((EOS, 5),)), "5 of <eos> is the rank of a token"),
        (lambda: TiktokenTokenizer(path, specials=((EOS, 500), (EOS, 501))), "repeated name"),
        (lambda: TiktokenTokenizer(path, pattern="("), "TiktokenTokenizer.pattern: tiktoken cannot use '\\('"),
        (lambda: TiktokenTokenizer.train(["a"], 300), "read, not trained"),
        (bare, "pip install 'jaxlm\\[tokenize\\]'"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
