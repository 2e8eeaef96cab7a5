"""SentencePiece models: bytes, spans and special tokens beside what the library itself says."""

import builtins
import json

import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, PAD
from jaxlm.tokenize.sentence_piece import SentencePieceTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = ["the quick brown fox jumps over the lazy dog", "naïvely, again  and again", "日本語 and a fox"] * 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Path by kind: one that gives texts back, one as released checkpoints have it, one without bytes."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "exact": {"normalization_rule_name": "identity", "add_dummy_prefix": False, "byte_fallback": True, "pad_id": 3},
        "llama": {"normalization_rule_name": "identity", "byte_fallback": True, "model_type": "bpe"},
        "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "user_defined_symbols": ["<extra>"]},
    }
    for kind, settings in kinds.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_prefix=str(folder / kind),
            vocab_size={"exact": 330, "llama": 300, "t5": 60}[kind],
            hard_vocab_limit=kind == "llama",
            remove_extra_whitespaces=kind == "t5",
            minloglevel=2,
            **settings,
        )
    return {kind: str(folder / f"{kind}.model") for kind in kinds}


@pytest.mark.parametrize("kind", ["exact", "llama", "t5"])
def test_as_the_library(models, kind):
    tokenizer = SentencePieceTokenizer(models[kind])
    library = sentencepiece.SentencePieceProcessor(model_file=models[kind])
    for text in [*TEXTS[:3], " the fox", "quick", ""]:
        ids = tokenizer.encode(text)
        assert ids.tolist() == library.encode(text) and tokenizer.decode(ids) == library.decode(ids.tolist())
        whole, spans = tokenizer.decode_bytes(ids), tokenizer.spans(ids)
        assert b"".join(whole[a:b] for a, b in spans) == whole and spans.shape == (len(ids), 2)
    assert tokenizer.vocab_size == library.get_piece_size() == len(tokenizer.token_bytes)
    assert tokenizer.special_ids[EOS] == library.eos_id() and tokenizer.stop_ids == (library.eos_id(),)


def test_special_tokens(models):
    exact, t5 = SentencePieceTokenizer(models["exact"]), SentencePieceTokenizer(models["t5"])
    assert exact.special_ids == {"<s>": 1, "</s>": 2, "<pad>": 3, BOS: 1, EOS: 2, PAD: 3} and exact.adds_bos
    assert t5.special_ids == {"<pad>": 0, "</s>": 1, PAD: 0, EOS: 1} and not t5.adds_bos
    assert exact.encode("a", bos=True, eos=True).tolist() == [1, *exact.encode("a"), 2]
    assert not {1, 2, 3} & set(exact.encode("<s></s><pad>").tolist())
    assert t5.token_bytes[t5.encode("<extra>")[-1]] == b"<extra>"  # text that was declared a piece
    assert t5.encode("Ω")[-1] == 2 and t5.token_bytes[2] == b""  # unknown


def test_bytes(models):
    exact = SentencePieceTokenizer(models["exact"])
    for data in ["Ω  fox\n\t".encode(), bytes(range(256)), b"\xff the \xe6\x97 fox"]:
        assert exact.decode_bytes(exact.encode(data)) == data
    assert exact.spans(exact.encode("Ω")).tolist() == [[0, 1], [1, 2]]


def test_save_and_load(models, tmp_path):
    tokenizer = SentencePieceTokenizer(models["llama"])
    tokenizer.save(tmp_path / "t.json")
    loaded = SentencePieceTokenizer.load(tmp_path / "t.json")
    assert loaded == tokenizer and hash(loaded) == hash(tokenizer) and loaded != SentencePieceTokenizer(models["exact"])
    np.testing.assert_array_equal(loaded.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))


def test_bad_files(models, tmp_path, monkeypatch):
    (tmp_path / "bad.model").write_bytes(b"not a model")
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "bad.json").write_text(
        json.dumps({"format": "jaxlm.tokenizer/1", "name": "sentence_piece", "args": {}})
    )
    calls = [
        (lambda: SentencePieceTokenizer("no/such.model"), "cannot read no/such.model: No such file"),
        (lambda: SentencePieceTokenizer(str(tmp_path)), "cannot read"),
        (lambda: SentencePieceTokenizer(str(tmp_path / "bad.model")), "not a SentencePiece .model"),
        (lambda: SentencePieceTokenizer(str(tmp_path / "empty.model")), "empty.model: .* SentencePiece"),
        (lambda: SentencePieceTokenizer(str(tmp_path / "bad.json")), "neither a .model nor a saved"),
        (lambda: SentencePieceTokenizer().encode("a"), "name a .model file"),
        (lambda: SentencePieceTokenizer(models["llama"]).encode(b"ab\xff"), "not UTF-8 at byte 2"),
        (lambda: SentencePieceTokenizer.train(["a"], 300), "train it with the library"),
    ]
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sentencepiece":
            raise ImportError
        return imported(name, *args, **kwargs)

    def bare():
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", without)
            SentencePieceTokenizer(models["llama"])

    for call, message in [*calls, (bare, "pip install 'jaxlm\\[tokenize\\]'")]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
