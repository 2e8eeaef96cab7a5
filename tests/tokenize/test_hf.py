"""Tokenizers of checkpoints: trained here with the library, compared with it, and exact where the library is not."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import jaxlm.tokenize
from jaxlm.core.config import from_dict, make, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, PAD
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.hf import FILE, HfTokenizer, check_vocabulary

TEXT = ["the quick brown fox jumps over the lazy dog, naïvely — again and again"] * 4 + [
    "def f(x):\n    return x + 1\n",
    "日本語のテキスト and a 🦊 fox, the fox's den",
]


def byte_level(add_prefix_space=False):
    """As GPT-2, with a token of text that was added, and one that is special but not named anywhere."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXT, trainer)
    library.add_tokens([AddedToken("été", normalized=False)])
    library.add_special_tokens(["<|im_end|>"])
    return library


def fallback_bpe():
    """As Llama: U+2581 for spaces, put before every text; bytes for what the vocabulary lacks; BOS by the template."""
    library = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    library.train_from_iterator(
        [TEXT[0]] * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, show_progress=False)
    )
    settings = json.loads(library.to_str())
    settings["added_tokens"] = settings["added_tokens"][:3]  # the bytes are plain tokens
    library = Tokenizer.from_str(json.dumps(settings))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return library


def fallback_unigram():
    """As the newer conversions from SentencePiece: a Metaspace, and bytes in the vocabulary with scores of nothing."""
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator([TEXT[0]] * 4, trainer)
    settings = json.loads(library.to_str())
    settings["model"]["vocab"] += [[f"<0x{b:02X}>", -20.0] for b in range(256)]
    settings["model"]["byte_fallback"] = True
    library = Tokenizer.from_str(json.dumps(settings))
    library.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    return library


def word_piece():
    """As BERT: lower case, no accents, and a decoder that guesses the spaces."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    library.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials, show_progress=False)
    )
    return library


MAKERS = {f.__name__: f for f in (byte_level, fallback_bpe, fallback_unigram, word_piece)}
EXACT = ["byte_level", "fallback_bpe", "fallback_unigram"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for name, maker in MAKERS.items():
        (root / name).mkdir()
        library = maker()
        library.enable_truncation(3)  # some checkpoints carry these along
        library.enable_padding(length=8)
        library.save(str(root / name / FILE))
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}}
    (root / "byte_level" / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "byte_level" / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 301, 0, -1, 999]}))
    (root / "fallback_bpe" / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}')
    (root / "fallback_unigram" / "special_tokens_map.json").write_text(
        '{"eos_token": "</s>", "pad_token": {"content": "<pad>"}, "bos_token": "<absent>", "unk_token": "<unk>"}'
    )
    return root


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: HfTokenizer.from_folder(folders / name) for name in MAKERS}


@pytest.mark.parametrize("name", MAKERS)
def test_agrees_with_the_library(folders, loaded, name):
    ours, library = loaded[name], Tokenizer.from_file(str(folders / name / FILE))
    library.no_truncation(), library.no_padding()
    assert ours.vocab_size == library.get_vocab_size()
    for text in [*TEXT, "", " ", "a", "  two  spaces ", "lait, the fox", "unseen: ж 𝔘", "tab\tnew\n\nlines"]:
        ids = ours.encode(text)
        assert ids.dtype == np.int32 and ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == library.decode(ids.tolist())


def test_a_token_that_was_added_is_text(folders, loaded):
    """The library decodes it through the alphabet of bytes, in which é is the byte 0xE9."""
    ids = loaded["byte_level"].encode("un été long")
    assert 300 in ids and loaded["byte_level"].decode(ids) == "un été long"
    assert "\ufffd" in Tokenizer.from_file(str(folders / "byte_level" / FILE)).decode(ids.tolist())


@given(st.text())
def test_byte_level_text_round_trip(loaded, text):
    ids = loaded["byte_level"].encode(text)
    assert loaded["byte_level"].decode(ids) == text


@given(st.binary())
def test_byte_level_takes_any_bytes(loaded, data):
    ours = loaded["byte_level"]
    assert ours.decode_bytes(ours.encode(data)) == data
    assert ours.encode(ours.decode(ours.encode(data))).tolist() == ours.encode(data).tolist()


@pytest.mark.parametrize("name", EXACT)
def test_halves_of_a_character_are_bytes(loaded, name):
    """Where the library can only say U+FFFD."""
    ours = loaded[name]
    ids = ours.encode("a 🦊")
    assert ours.decode_bytes(ids) == "a 🦊".encode()
    assert ours.decode_bytes(ids[:-1]) == "a 🦊".encode()[:-1]
    assert ours.decode(ids[:-1]).encode("utf-8", "surrogateescape") == "a 🦊".encode()[:-1]


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data())
def test_spans_cut_the_bytes(loaded, name, data):
    ours = loaded[name]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
    text, spans = ours.decode_bytes(ids), ours.spans(ids)
    assert spans.shape == (len(ids), 2) and spans[:, 0].tolist() == [0, *spans[:-1, 1]][: len(ids)]
    assert b"".join(text[a:b] for a, b in spans) == text
    cut = [text[a:b] for a, b in spans]
    real = [i for i, piece in enumerate(ours.token_bytes[t] for t in ids) if piece]
    assert all(cut[i] == ours.token_bytes[ids[i]] for i in real[1:])
    assert not real or ours.token_bytes[ids[real[0]]].endswith(cut[real[0]])  # the first may lose its space


def test_tokens_as_bytes(folders, loaded):
    table = loaded["byte_level"].token_bytes
    assert {bytes([b]) for b in range(256)} <= set(table)
    assert table[300:] == ("été".encode(), b"") and table[0] == b""
    table, library = loaded["fallback_bpe"].token_bytes, Tokenizer.from_file(str(folders / "fallback_bpe" / FILE))
    assert [table[3 + b] for b in range(256)] == [bytes([b]) for b in range(256)]
    assert table[library.token_to_id("▁a")] == b" a" and table[:3] == (b"", b"", b"")


def test_decoders_without_bytes_give_text(loaded):
    ours = loaded["word_piece"]
    ids = ours.encode("The lazy dogs, again")
    assert ours.decode(ids) == "the lazy dogs, again" and ours.decode_bytes(ids) == b"the lazy dogs, again"
    for ask in (lambda: ours.token_bytes, lambda: ours.spans(ids)):
        with pytest.raises(ConfigError, match=r"decoder \(WordPiece\) does not give bytes token by token"):
            ask()


def test_special_tokens(loaded):
    byte = loaded["byte_level"]
    assert byte.special_ids == {"<|endoftext|>": 0, "<|im_end|>": 301, BOS: 0, EOS: 0}
    assert byte.stop_ids == (0, 300, 301) and not byte.adds_bos
    llama = loaded["fallback_bpe"]
    assert llama.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2, BOS: 1, EOS: 2} and llama.adds_bos
    assert llama.stop_ids == (2,)
    t5 = loaded["fallback_unigram"]
    assert t5.special_ids == {"<pad>": 0, "</s>": 1, "<unk>": 2, EOS: 1, PAD: 0} and not t5.adds_bos
    assert loaded["word_piece"].special_ids == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    assert loaded["word_piece"].stop_ids == ()
    assert llama.encode("fox", bos=True, eos=True).tolist() == [1, *llama.encode("fox"), 2]
    assert llama.decode([1, *llama.encode("fox"), 2]) == "fox"


@pytest.mark.parametrize("name", ["byte_level", "fallback_bpe"])
def test_text_never_makes_a_special_token(loaded, name):
    ours = loaded[name]
    for token in ours.special_ids:
        ids = ours.encode(f"a {token} b")
        assert not set(ours.special_ids.values()) & set(ids.tolist()) and ours.decode(ids) == f"a {token} b"


def test_save_and_load(loaded, tmp_path):
    for ours in loaded.values():
        ours.save(tmp_path / "t.json")
        for again in (HfTokenizer.load(tmp_path / "t.json"), jaxlm.tokenize.load(tmp_path / "t.json")):
            assert again == ours and hash(again) == hash(ours)
            assert again.encode(TEXT[0]).tolist() == ours.encode(TEXT[0]).tolist()
            assert again.special_ids == ours.special_ids
    assert len(set(loaded.values())) == len(loaded)
    ByteTokenizer().save(tmp_path / "t.json")
    with pytest.raises(ConfigError, match="holds a 'byte' tokenizer, not 'hf'"):
        HfTokenizer.load(tmp_path / "t.json")


def test_is_a_slot_of_the_configuration(folders):
    ours: HfTokenizer = make("tokenizer", {"name": "hf", "args": {"path": str(folders / "byte_level")}})
    assert from_dict(HfTokenizer, to_dict(ours)) == ours == HfTokenizer(str(folders / "byte_level" / FILE))


def test_a_prefix_space_takes_no_odd_bytes(tmp_path):
    byte_level(add_prefix_space=True).save(str(tmp_path / FILE))
    ours = HfTokenizer(str(tmp_path))
    assert ours.decode(ours.encode("fox")) == " fox"
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        ours.encode(b"fox\xff")


def test_vocabulary_of_the_model(loaded):
    check_vocabulary(loaded["byte_level"], 302)
    check_vocabulary(loaded["byte_level"], 512)
    with pytest.raises(ConfigError, match=r"the 'hf' tokenizer has ids 0\.\.301, the model's vocabulary only 0\.\.300"):
        check_vocabulary(loaded["byte_level"], 301)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no tokenizer.json \(of tokenizers it has: nothing\)$"),
        (
            {"tokenizer.model": "x", "vocab.json": "{}", "a.txt": ""},
            r"it has: tokenizer.model, vocab.json\); save it with",
        ),
        ({FILE: "{"}, "tokenizer.json: is not JSON"),
        ({FILE: "[1]"}, "tokenizer.json: expected a JSON object, got list"),
        ({FILE: "{}"}, "not a tokenizer.json that tokenizers can read: "),
        ({FILE: '{"model": {"type": "Magic"}}'}, "not a tokenizer.json that tokenizers can read: "),
        ({FILE: "good", "tokenizer_config.json": "{"}, "tokenizer_config.json: is not JSON"),
    ],
)
def test_bad_folders(tmp_path, folders, files, message):
    for name, text in files.items():
        text = (folders / "byte_level" / FILE).read_text() if text == "good" else text
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        HfTokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model["vocab"].update(a=model["vocab"]["b"]), "tokens '[ab]' and '[ab]' have one id, "),
        (lambda model: model["vocab"].update(a=2**31), "token 'a' of 302 has id 2147483648"),
        (lambda model: model.update(dropout=0.1), "has dropout 0.1, so a text has no one encoding; set it to null"),
    ],
)
def test_files_that_would_not_be_exact(tmp_path, folders, change, message):
    content = json.loads((folders / "byte_level" / FILE).read_text())
    change(content["model"])
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as error:
        HfTokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: HfTokenizer().vocab_size, "HfTokenizer.path: name a folder with a tokenizer.json"),
        (lambda t: HfTokenizer("no/such"), "no/such is no file or folder"),
        (lambda t: HfTokenizer.train(["a"]), "train it with the library tokenizers"),
        (lambda t: t["byte_level"].decode([302]), r"token id 302 is outside the 'hf' tokenizer's 0\.\.301"),
        (lambda t: t["word_piece"].decode([120]), "token id 120"),
        (lambda t: t["fallback_bpe"].encode(b"\xc3\xa9 \xff"), "not UTF-8 at byte 3; .* is not byte-level"),
        (lambda t: t["fallback_unigram"].encode("a", bos=True), "has no <bos>; its special tokens: <pad>, </s>, <unk>"),
    ],
)
def test_bad_input(loaded, call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call(loaded)
    assert "\n" not in str(error.value)


def test_without_the_library(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"needs tokenizers: pip install 'jaxlm\[hf\]'"):
        HfTokenizer(str(folders / "byte_level"))
