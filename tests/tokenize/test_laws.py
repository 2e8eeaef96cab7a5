"""Laws of every registered tokenizer, none of them named below the list."""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlm.tokenize
from jaxlm.core import registry
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, PAD, Tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog, naïvely, again and again",
    "def f(x):\n    return x + 1  # 12345 and 67\n",
    "日本語のテキスト and a 🦊 fox, the fox's den \r\n",
] * 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the list: a registered name, how one is made (trained on `TEXTS`, say), and what it promises.

    Attributes:
      name: the registered name.
      make: gives a tokenizer of it; called once.
      exact: it takes any bytes and gives them back.
      texts: what it takes and gives back, where it is not exact.
      label: tells two lines of one name apart.
    """

    name: str
    make: Callable[[], Tokenizer]
    exact: bool = True
    texts: Any = None
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return self.make()


def trained(name: str, *args: Any, **kwargs: Any) -> Callable[[], Tokenizer]:
    return lambda: registry.get("tokenizer", name).train(TEXTS, *args, **kwargs)


def exported() -> Tokenizer:
    """A checkpoint's tokenizer, in a folder that lives as long as the tests."""
    from jaxlm.tokenize.bpe_files import to_hf

    folder = tempfile.mkdtemp()
    to_hf(trained("bpe", 320, split=("gpt2",))(), folder)
    return make("tokenizer", {"name": "hf", "args": {"path": folder}})


def sentence_piece() -> Tokenizer:
    """A model that the library trains, of the kind that gives texts back."""
    library = pytest.importorskip("sentencepiece")
    prefix = f"{tempfile.mkdtemp()}/m"
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=prefix,
        vocab_size=380,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=3,
        minloglevel=2,
    )
    return make("tokenizer", {"name": "sentence_piece", "args": {"path": f"{prefix}.model"}})


def ranks() -> Tokenizer:
    """A file of ranks with the tokens of a BPE trained here, special tokens behind a gap."""
    pytest.importorskip("tiktoken")
    path = Path(tempfile.mkdtemp()) / "ranks.tiktoken"
    tokens = trained("bpe", 320, split=("gpt2",))().token_bytes
    lines = [f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(tokens) if token]
    path.write_text("\n".join(lines) + "\n")
    specials = [["<eos>", 330], ["<|endoftext|>", 330]]
    return make("tokenizer", {"name": "tiktoken", "args": {"path": str(path), "specials": specials}})


CASES = [
    Case("byte", trained("byte")),
    Case("bpe", trained("bpe", 320)),
    Case("bpe", trained("bpe", 310, split=()), label="unsplit"),
    Case("bpe", trained("bpe", 310, split=("gpt2", "digits_r2l_3"), specials=("<a>",)), label="gpt2"),
    Case("super_bpe", trained("super_bpe", 320)),
    Case("super_bpe", trained("super_bpe", 320, share=0.8, words=2, split=("gpt2",)), label="two_words"),
    Case("character", trained("character")),
    Case("character", trained("character", 263), label="few"),
    Case("unigram", trained("unigram", 320)),
    Case("unigram", trained("unigram", 300, split=("gpt2",), coverage=0.9, max_length=4), label="few_characters"),
    Case("word_piece", trained("word_piece", 320)),
    Case("word_piece", trained("word_piece", 310, form="bert", rule="ratio", split=("gpt2",)), label="bert"),
    Case("path_piece", trained("path_piece", 320)),
    Case("path_piece", trained("path_piece", 300, split=(), max_length=5), label="unsplit"),
    Case("dictionary", trained("dictionary")),
    Case("dictionary", trained("dictionary", 300), label="few"),
    Case("less_is_better", trained("less_is_better", 280, passes=30, lines=4)),
    Case("hf", exported),
    Case("sentence_piece", sentence_piece, texts=st.text().map(lambda text: text.replace("\u2581", ""))),
    Case("tiktoken", ranks),
    Case("k_tokeniser", trained("k_tokeniser", 280, choice="entropy")),
]
EXACT = [case for case in CASES if case.exact]
every = pytest.mark.parametrize("case", CASES, ids=str)


def takes(case: Case) -> Any:
    """Texts that the tokenizer of a case gives back, some of them like those it was made from."""
    if case.texts is not None:
        return case.texts
    like = st.lists(st.sampled_from([*"".join(TEXTS[:3]).split(" "), " ", "  ", "\n"])).map(" ".join)
    return st.one_of(st.text(), like)


def test_every_tokenizer_is_in_the_list():
    assert {case.name for case in CASES} == set(registry.methods("tokenizer"))


@every
def test_is_what_it_says(case):
    tokenizer = case.tokenizer
    assert registry.name_of("tokenizer", tokenizer) == case.name == tokenizer.name and tokenizer.paper
    if case.exact:
        assert len(tokenizer.token_bytes) == tokenizer.vocab_size
        assert all(tokenizer.token_bytes[i] == b"" for i in tokenizer.special_ids.values())


@every
@given(data=st.data())
def test_text_round_trip(case, data):
    text = data.draw(takes(case))
    ids = case.tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert case.tokenizer.decode(ids) == text
    assert case.tokenizer.encode(text.encode()).tolist() == ids.tolist()


@pytest.mark.parametrize("case", EXACT, ids=str)
@given(data=st.binary())
def test_bytes_round_trip(case, data):
    ids = case.tokenizer.encode(data)
    assert case.tokenizer.decode_bytes(ids) == data
    assert case.tokenizer.encode(case.tokenizer.decode(ids)).tolist() == ids.tolist()  # through str and back


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_every_byte_alone_and_long_runs(case):
    for data in [*(bytes([byte]) for byte in range(256)), bytes(range(256)), b"a" * 300, b" " * 300, b"the " * 80]:
        assert case.tokenizer.decode_bytes(case.tokenizer.encode(data)) == data


@pytest.mark.parametrize("case", EXACT, ids=str)
@given(data=st.data())
def test_spans_cut_the_bytes(case, data):
    tokenizer = case.tokenizer
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    whole, spans = tokenizer.decode_bytes(ids), tokenizer.spans(ids)
    assert spans.shape == (len(ids), 2) and spans.dtype == np.int64
    assert [whole[a:b] for a, b in spans] == [tokenizer.token_bytes[i] for i in ids]
    assert [0, *spans[:, 1]][:-1] == spans[:, 0].tolist() and (not ids or spans[-1, 1] == len(whole))


@every
def test_text_never_makes_a_special_token(case):
    tokenizer = case.tokenizer
    text = " ".join(tokenizer.special_ids) + BOS + EOS + PAD
    if case.exact:
        assert not set(tokenizer.encode(text).tolist()) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(tokenizer.encode(text)) == text


@every
def test_ends(case):
    """`bos` and `eos` put those tokens around the text, or say that there are none."""
    tokenizer = case.tokenizer
    for bos, eos in itertools.product((False, True), repeat=2):
        if (bos and BOS not in tokenizer.special_ids) or (eos and EOS not in tokenizer.special_ids):
            with pytest.raises(ConfigError, match="special tokens"):
                tokenizer.encode("a", bos=bos, eos=eos)
            continue
        ids = tokenizer.encode("a", bos=bos, eos=eos).tolist()
        before, after = [tokenizer.special_ids.get(BOS)] * bos, [tokenizer.special_ids.get(EOS)] * eos
        assert ids == [*before, *tokenizer.encode("a").tolist(), *after]
    assert tokenizer.encode("").tolist() == [] and tokenizer.decode([]) == ""


@every
def test_save_and_load(case, tmp_path):
    tokenizer, path = case.tokenizer, tmp_path / "t.json"
    tokenizer.save(path)
    json.loads(path.read_bytes())
    for loaded in (type(tokenizer).load(path), jaxlm.tokenize.load(path)):
        assert loaded == tokenizer and hash(loaded) == hash(tokenizer)
        assert loaded.vocab_size == tokenizer.vocab_size and loaded.special_ids == tokenizer.special_ids
        for text in TEXTS[:3]:
            assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert from_dict(type(tokenizer), to_dict(tokenizer)) == tokenizer
    assert make("tokenizer", case.name).name == case.name  # the name alone is one, with nothing learned


@every
def test_the_same_training_twice(case):
    again = case.make()
    assert again.vocab_size == case.tokenizer.vocab_size and again.special_ids == case.tokenizer.special_ids
    for text in TEXTS[:3]:
        assert again.encode(text).tolist() == case.tokenizer.encode(text).tolist()


@every
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.decode([0, t.vocab_size]), "token id [0-9]+ is outside the '[a-z_]+' tokenizer's 0.."),
        (lambda t: t.decode([-1]), "token id -1"),
        (lambda t: t.decode([[0]]), "expected token ids of shape"),
        (lambda t: t.decode([0.5]), "integer dtype"),
        (lambda t: t.encode("ab\ud800"), "lone surrogate U\\+D800 at character 2"),
        (lambda t: from_dict(type(t), {"no_such_field": 1}), "no_such_field"),
        (lambda t: type(t).load("no/such.json"), "cannot read tokenizer no/such.json: No such file"),
        (lambda t: t.special("<nothing>"), "has no <nothing>"),
    ],
)
def test_bad_input(case, call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call(case.tokenizer)
    assert "\n" not in str(error.value)


def test_damaged_arguments(tmp_path):
    """A saved file whose arguments do not fit is one line, whichever method."""
    for case in CASES:
        path: Path = tmp_path / "t.json"
        case.tokenizer.save(path)
        content = json.loads(path.read_bytes())
        content["args"]["surplus"] = 1
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="surplus") as error:
            jaxlm.tokenize.load(path)
        assert "\n" not in str(error.value)
