"""Files of byte-level BPE: read and written, and encoded as the library tokenizers does."""

import json
from itertools import product

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, PAD
from jaxlm.tokenize.bpe import BpeTokenizer, unreachable
from jaxlm.tokenize.bpe_files import FILE, MERGES, VOCABULARY, from_hf, notes_of, to_hf
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.byte_alphabet import alphabet
from jaxlm.tokenize.hf import HfTokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog, naïvely — again and again", "It's 12345 + 67\n\n  def f():"] * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Characters that this Python's Unicode knows: newer ones are letters in one package and nothing in another.
KNOWN = st.text(st.characters(exclude_categories=("Cs", "Cn")))
LIKE = st.lists(st.sampled_from([*" ".join(TEXTS[:2]).split(" "), " ", "\n", "1", "٣", "'LL"])).map(" ".join)
TEXT = st.one_of(KNOWN, LIKE)

SIZE = 310
ByteLevel, Split = pre_tokenizers.ByteLevel, pre_tokenizers.Split
BARE = ByteLevel(add_prefix_space=False, use_regex=False)
STEPS = {
    "gpt2": ByteLevel(add_prefix_space=False),
    "none": BARE,
    "llama3": pre_tokenizers.Sequence([Split(Regex(LLAMA3), "isolated"), BARE]),
    "starcoder": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), ByteLevel(False)]),
    "digit_runs": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), ByteLevel(False)]),
    "a_string": pre_tokenizers.Sequence([Split("a.", "isolated"), Split("n", "isolated"), BARE]),
}


def library(step, size=SIZE):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = step, decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, step in STEPS.items():
        (folder / name).mkdir()
        library(step).save(str(folder / name / FILE))
    return folder


@pytest.mark.parametrize("name", STEPS)
@given(data=st.data())
def test_encodes_as_the_library(saved, name, data):
    made, reference = from_hf(saved / name), Tokenizer.from_file(str(saved / name / FILE))
    text = data.draw(TEXT)
    assert made.ids[made.tokenizer.encode(text)].tolist() == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", STEPS)
def test_what_is_read(saved, name):
    made, vocabulary = from_hf(saved / name / FILE), Tokenizer.from_file(str(saved / name / FILE)).get_vocab()
    assert made.notes == () and sorted(made.ids.tolist()) == list(range(SIZE))
    assert made.tokenizer.special_ids == {"<|end|>": SIZE - 2, "<|pad|>": SIZE - 1}
    assert made.ids[SIZE - 2 :].tolist() == [vocabulary["<|end|>"], vocabulary["<|pad|>"]]
    assert made.ids.dtype == np.int64 and made.ids[32] == vocabulary["Ġ"]


OURS = [
    BpeTokenizer.train(TEXTS, 256 + 3 + 50),
    BpeTokenizer.train(TEXTS, 256 + 1 + 50, split=("gpt2",), specials=("<|end|>",)),
    BpeTokenizer.train(TEXTS, 256 + 50, split=(), specials=()),
    *(
        BpeTokenizer.train(TEXTS, 256 + 3 + 30, split=split)
        for split in (
            ("lines", "space"),
            ("whitespace",),
            ("digits", "gpt2"),
            ("gpt2", "digits_r2l_3"),
            ("digits_l2r_2",),
        )
    ),
    BpeTokenizer.train(TEXTS, 256 + 3 + 30, split=(f"regex:{LLAMA3}",)),
]
IDS = ["|".join(rule[:20] for rule in tokenizer.split) for tokenizer in OURS]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("written") for _ in OURS]
    for tokenizer, folder in zip(OURS, folders, strict=True):
        to_hf(tokenizer, folder)
    return folders


@pytest.mark.parametrize("which", range(len(OURS)), ids=IDS)
@given(data=st.data())
def test_the_library_encodes_what_we_write(written, which, data):
    text = data.draw(TEXT)
    ids = OURS[which].encode(text).tolist()
    reference = Tokenizer.from_file(str(written[which] / FILE))
    reference.encode_special_tokens = True  # "<pad>" in a text is five characters
    assert reference.encode(text, add_special_tokens=False).ids == ids
    assert reference.decode(ids) == text


@pytest.mark.parametrize("which", range(len(OURS)), ids=IDS)
def test_what_we_write_is_what_we_read(written, which):
    made = from_hf(written[which])
    assert made.tokenizer == OURS[which]
    assert made.ids.tolist() == list(range(OURS[which].vocab_size)) and made.notes == ()


@given(st.text(st.sampled_from("ab c1é"), max_size=200), TEXT)
def test_fresh_corpora(tmp_path_factory, corpus, text):
    """Small alphabets, where merges of the same bytes are likely: those are refused, all else encodes alike."""
    words = max(len(corpus), 1)
    for size in (20, 6):
        try:
            tokenizer = BpeTokenizer.train([corpus, "abab"], 256 + min(size, words), specials=())
            break
        except ConfigError:
            tokenizer = BpeTokenizer(specials=())
    folder = tmp_path_factory.mktemp("fresh")
    if any(lost.reason == "same bytes" for lost in unreachable(tokenizer)):
        with pytest.raises(ConfigError, match="both spell"):
            to_hf(tokenizer, folder)
        return
    to_hf(tokenizer, folder)
    reference = Tokenizer.from_file(str(folder / FILE))
    for each in (corpus, text):
        assert reference.encode(each).ids == tokenizer.encode(each).tolist()


def test_special_tokens_and_their_roles(written):
    """Through the folder as a checkpoint: the config beside it says which token begins, ends and pads."""
    loaded = HfTokenizer.from_folder(written[0])
    assert {name: loaded.special_ids[name] for name in (BOS, EOS, PAD)} == OURS[0].special_ids
    assert Tokenizer.from_file(str(written[0] / FILE)).encode("a<eos>").ids == [97, OURS[0].special_ids[EOS]]


@pytest.mark.torch
def test_transformers_reads_it(written):
    transformers = pytest.importorskip("transformers")
    for tokenizer, folder in zip(OURS[:2], written, strict=False):
        loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
        for text in TEXTS[:2]:
            assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).tolist()
        assert len(loaded) == tokenizer.vocab_size
    loaded = transformers.AutoTokenizer.from_pretrained(str(written[0]))
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (BOS, EOS, PAD)
    assert loaded.decode(OURS[0].encode(TEXTS[0]).tolist()) == TEXTS[0]


def test_vocab_and_merges(saved, tmp_path):
    """The files of GPT-2, beside a vocabulary and alone."""
    made, model = from_hf(saved / "gpt2"), json.loads((saved / "gpt2" / FILE).read_text())["model"]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    (tmp_path / MERGES).write_text("\n".join(lines))
    alone = from_hf(tmp_path)
    assert alone.tokenizer == from_hf(tmp_path / MERGES).tokenizer
    assert alone.tokenizer.merges == made.tokenizer.merges and alone.tokenizer.split == ("gpt2",)
    assert alone.ids[list(alphabet().values())].tolist() == list(range(256))
    assert alone.ids[256:].tolist() == list(range(256, 256 + len(model["merges"])))
    (tmp_path / VOCABULARY).write_text(json.dumps(model["vocab"]))
    both = from_hf(tmp_path)
    assert both.tokenizer == alone.tokenizer and both.ids.tolist() == made.ids[: len(both.ids)].tolist()
    assert both.notes == (f"{tmp_path / MERGES}: 2 tokens that nothing makes: <|end|>, <|pad|>",)


END = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def settings(merges, extra=(), **model):
    """A tokenizer.json of merges written as text."""
    tokens = dict.fromkeys([*alphabet(), *("".join(merge.split(" ")) for merge in merges), *extra])
    vocab = {token: i for i, token in enumerate(tokens)}
    return {
        "added_tokens": [],
        "pre_tokenizer": END,
        "decoder": END,
        "model": {"type": "BPE", "vocab": vocab, "merges": list(merges), **model},
    }


def read(tmp_path, content):
    (tmp_path / FILE).write_text(json.dumps(content))
    return from_hf(tmp_path)


WORDS = [*map("".join, [*product("ab", repeat=2), *product("ab", repeat=3)]), "abab", "aaab", "abba"]
WAYS = [f"{word[:cut]} {word[cut:]}" for word in WORDS for cut in range(1, len(word))]


@hypothesis.settings(max_examples=300)
@given(st.lists(st.sampled_from(WAYS), unique=True, min_size=4, max_size=16), st.booleans(), st.data())
def test_any_list_of_merges(tmp_path_factory, merges, sort, data):
    """Lists nobody learned: one token by two merges, parts that nothing makes, merges in any order. What is read
    encodes as the library does; the rest is refused by name."""
    merges = sorted(merges, key=len) if sort else merges
    content = settings(merges, extra=[part for merge in merges for part in merge.split(" ")])
    folder = tmp_path_factory.mktemp("any")
    try:
        made = read(folder, content)
    except ConfigError as error:
        assert "makes later" in str(error) and not sort
        return
    reference = Tokenizer.from_str(json.dumps({"version": "1.0", **content}))
    text = data.draw(st.text(st.sampled_from("ab"), min_size=4, max_size=40))
    assert made.ids[made.tokenizer.encode(text)].tolist() == reference.encode(text).ids


def test_notes_say_what_is_left_out(tmp_path):
    made = read(tmp_path, settings(["a b", "b c", "ab c", "a bc", "xy z"], extra=["xy", "qrs"]))
    assert made.tokenizer.merges == ((97, 98), (98, 99), (256, 99))
    assert [note.partition(": ")[2] for note in made.notes] == [
        "1 merges that spell another merge's token and never fire: a bc",
        "1 merges of tokens that nothing makes: xy z",
        "3 tokens that nothing makes: xyz, xy, qrs",
    ]


def test_whole_pieces_first(tmp_path):
    """`ignore_merges` is harmless where merging makes every token, and refused where it does not."""
    assert read(tmp_path, settings(["a b", "ab c"], ignore_merges=True)).tokenizer.encode("abc").tolist() == [257]
    for content in (
        settings(["a b"], extra=["abc"], ignore_merges=True),
        settings(["a b", "b c", "a bc"], ignore_merges=True),
    ):
        with pytest.raises(ConfigError, match=r"by ignore_merges \['abc'\] is a token, but merging does not make it"):
            read(tmp_path, content)


def changed(**changes):
    """A good file with some of its keys replaced, ``model__x`` inside the model."""
    content = settings(["a b", "ab c"])
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            content[outer][inner] = value
        else:
            content[outer] = value
    return content


ISOLATE = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
sequence = lambda *steps: {"type": "Sequence", "pretokenizers": [*steps]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(model=None), "has no model"),
        (changed(model__type="Unigram"), "its model is 'Unigram', not BPE"),
        (changed(normalizer={"type": "NFC"}), r"its normalizer \(NFC\) changes text"),
        (changed(model__dropout=0.1), "has dropout 0.1"),
        (changed(model__end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
        (changed(model__vocab=[]), "vocab is not a map"),
        (changed(model__vocab={"a": "1"}), "vocab is not a map"),
        (changed(model__vocab={"a": 1, "b": 2, "ab": 3}), "merge 1 \\(ab c\\) is of 'c', not in the vocabulary"),
        (changed(model__vocab={"a": 1}, model__merges=[]), "no token for byte 0x21"),
        (changed(model__vocab=settings(["a b", "ab c"])["model"]["vocab"] | {"ab": 3}), "tokens .* have one id, 3"),
        (changed(model__merges=None), "merges are not a list"),
        (changed(model__merges=["a b c"]), "merge 0 is 'a b c', not two tokens"),
        (changed(model__merges=[["a", 1]]), "merge 0 is"),
        (changed(model__merges=["a b", "a b"]), r"merge 1 \(a b\) is merge 0 again"),
        (changed(model__merges=["ab c", "a b"]), "is of 'ab', which merge 1 makes later"),
        (settings(["▁ a"], extra=["▁"]), "is not byte-level: '▁'"),
        (changed(added_tokens={}), "added_tokens is not a list"),
        (changed(added_tokens=[{"id": 1}]), "without content and id"),
        (changed(added_tokens=[{"id": 900, "content": "été", "special": False}]), "'été' was added as text"),
        (changed(pre_tokenizer=None), "its pre-tokenizer is none; byte-level BPE has ByteLevel"),
        (changed(pre_tokenizer={"type": "Metaspace"}), "its pre-tokenizer is Metaspace"),
        (
            changed(pre_tokenizer=sequence(END, ISOLATE)),
            "is ByteLevel, Split; byte-level BPE has ByteLevel, as the last",
        ),
        (changed(pre_tokenizer={"type": "ByteLevel"}), "has add_prefix_space"),
        (changed(pre_tokenizer=sequence({"type": "Punctuation"}, END)), "has Punctuation; Split, Digits and ByteLevel"),
        (changed(pre_tokenizer=sequence(ISOLATE | {"behavior": "Removed"}, END)), "with 'Removed'; Isolated"),
        (changed(pre_tokenizer=sequence(ISOLATE | {"pattern": "a"}, END)), "splits by 'a', not by a String or Regex"),
        (changed(pre_tokenizer=sequence(ISOLATE | {"pattern": {"Regex": "("}}, END)), r"splitting rule 'regex:\('"),
        ([1], "expected a JSON object, got list"),
    ],
)
def test_files_that_do_not_work(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, content)
    assert str(tmp_path) in str(error.value) or "splitting rule" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, f"has neither {FILE} nor {MERGES}"),
        ({FILE: "{"}, "is not JSON"),
        ({MERGES: "a b\nabc\n"}, "line 2 is 'abc', not two tokens"),
        ({MERGES: "a b\n", VOCABULARY: '{"a": null}'}, "is not a map from tokens to ids"),
        ({MERGES: b"a b\n\xff \xff"}, "is not UTF-8 at byte 4"),
    ],
)
def test_folders_that_do_not_work(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as error:
        from_hf(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        from_hf(tmp_path / "absent.txt")


def test_what_cannot_be_written(tmp_path):
    twice = BpeTokenizer(((97, 98), (98, 99), (256, 99), (97, 257)))
    with pytest.raises(ConfigError, match="tokens 258 and 259 both spell b'abc'"):
        to_hf(twice, tmp_path)
    with pytest.raises(ConfigError, match="special token 'ab' and token 256 are spelled alike"):
        to_hf(BpeTokenizer(((97, 98),), specials=("ab",)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_added_by_the_library(saved, tmp_path):
    """A special token that was added later keeps its id, wherever that is."""
    reference = library(STEPS["gpt2"])
    reference.add_special_tokens([AddedToken("<|late|>", special=True)])
    reference.save(str(tmp_path / FILE))
    made = from_hf(tmp_path)
    assert made.tokenizer.specials == ("<|end|>", "<|pad|>", "<|late|>") and made.ids[-1] == SIZE


def test_notes_name_what_no_text_uses(tmp_path):
    """Of a file, tokens without merges and merges that never fire; of ours, tokens that encoding never makes."""
    content = settings(["a b", "ab c"], extra=["zzq"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (note,) = notes_of(HfTokenizer(str(tmp_path)))
    assert "1 tokens that nothing makes: zzq" in note
    ours = BpeTokenizer(((97, 98), (98, 99), (256, 99), (97, 257)))  # a bc is never made: ab comes first
    assert any("b'abc'" in note for note in notes_of(ours))
    assert notes_of(BpeTokenizer(((97, 98),))) == () == notes_of(ByteTokenizer())
