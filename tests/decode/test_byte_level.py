"""Models of bytes made of models of tokens: against every encoding written out, and each way against the other."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.decode import byte_level, byte_tree, token_model
from jaxlm.decode.byte_level import Ensemble, FullPass, Prompt, SearchBytes, TreeBytes, byte_view, fill_in_the_middle
from jaxlm.model.spec import Block, Group
from jaxlm.tokenize.base import BOS
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.covers import covers
from jaxlm.tokenize.hf import HfTokenizer
from tests.tiny import params_of, slow, tiny
from tests.tokenize.test_covers import byte_level as hf_byte_level

TEXTS = ["the cat sat on the mat and the hat that then ate the oats " * 3, "aaaa aaab baa bab\nab a"]
PROMPTS = ["the ca", "", "that t", "aaaa aa", b"the \xc3", "the mat and the ha", "ab\n"]
BYTES = [*b"the ca\n", 0xA9, 0]


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    for module, name, function in QUICK:
        monkeypatch.setattr(module, name, function)


QUICK = [
    (byte_level, "_prefill", jax.jit(byte_tree.prefill, static_argnums=(0, 1))),
    (byte_level, "_feed", jax.jit(byte_tree.feed, static_argnums=0)),
    (byte_level, "_advance", jax.jit(byte_tree.advance, static_argnums=0)),
    (byte_level, "_sample", jax.jit(byte_tree.sample, static_argnums=(0, 1))),
    (token_model, "_next", jax.jit(token_model._next.__wrapped__, static_argnums=0)),
    (token_model, "_own", jax.jit(token_model._own.__wrapped__, static_argnums=0)),
]


@functools.cache
def made(split=("space",), merges=24, seed=0, **fields):
    """A model, its parameters and its tokenizer."""
    tokenizer = BpeTokenizer.train(TEXTS, 259 + merges, split=split)
    spec = tiny({"position": "rotary"}, repeats=1, vocab_size=tokenizer.vocab_size, **fields)
    return jaxlm.LanguageModel(spec), params_of(spec, seed), tokenizer


def written_out(model, params, tokenizer, text, byte):
    """log P of texts that begin with text and byte, each cover with full passes of its own; of byte 256: that end."""
    head = (tokenizer.special(BOS),)
    if byte == 256:
        every = [(*tokenizer.encode(text).tolist(), tokenizer.stop_ids[0])]
    else:
        every = covers(tokenizer, text + bytes([byte]))
    apply = FullPass(model, params)
    rows = iter(apply([(*head, *cover[:k]) for cover in every for k in range(len(cover))]))
    return np.logaddexp.reduce([sum(next(rows)[token] for token in cover) for cover in every])


@pytest.mark.parametrize("split", [("space",), (), ("gpt2",)])
def test_search_equals_every_cover_written_out(split):
    model, params, tokenizer = made(split)
    view = byte_view(model, params, tokenizer, implementation="search")
    texts = [text.encode() if isinstance(text, str) else text for text in PROMPTS] + [b"a  b", b"\n\na"]
    found = view.start(texts).log_masses()
    for text, row in zip(texts, found, strict=True):
        truth = [written_out(model, params, tokenizer, text, byte) for byte in (*BYTES, 256)]
        np.testing.assert_allclose(row[[*BYTES, 256]], truth, rtol=1e-6, atol=1e-6)


CASES = {
    "rotary": {},
    "alibi and a window": {"position": "alibi", "mask": {"name": "window", "args": {"size": 3}}},
    "learned": {"position": {"name": "learned", "args": {"size": 64}}},
    "forgetting": {"position": "forgetting"},  # whose tokens carry a sum, so that caches are not shared
}


def run(mixer):
    tokenizer = made()[2]
    spec = tiny({"position": "rotary", **CASES.get(str(mixer), {})}, repeats=1, vocab_size=tokenizer.vocab_size)
    if not isinstance(mixer, str) or mixer not in CASES:  # one layer of each kind
        spec = tiny(
            repeats=1,
            vocab_size=tokenizer.vocab_size,
            layers=(Group((Block(mixer=mixer), *spec.layers[0].pattern), 1),),
        )
    return jaxlm.LanguageModel(spec), params_of(spec), tokenizer


MAMBA2 = {"name": "mamba2", "args": {"head_dim": 8, "state": 4, "chunk": 4}}


@pytest.mark.parametrize("mixer", ["rotary", "linear_attention", *slow(*((name,) for name in [*CASES][1:]), (MAMBA2,))])
def test_the_tree_equals_the_search(mixer):
    """Distributions, and texts drawn with the same noise; layers of all kinds of memory."""
    model, params, tokenizer = run(mixer)
    tree, search = byte_view(model, params, tokenizer), byte_view(model, params, tokenizer, implementation="search")
    assert isinstance(tree, TreeBytes) and isinstance(search, SearchBytes)
    ours, theirs = tree.next_byte(PROMPTS), search.next_byte(PROMPTS)
    np.testing.assert_allclose(np.exp(ours).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    seen = np.isfinite(theirs)
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=1e-5, atol=2e-5)
    arguments = (PROMPTS, 12, 0.9, jax.random.key(1))
    assert tree.generate(*arguments) == search.generate(*arguments)
    texts = ["t on", "\xe9", "a", "aab", "", "t", " "]
    for one, other in zip(tree.score(texts, PROMPTS), search.score(texts, PROMPTS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", [(), ("space", "lines")])
def test_fast_mode_and_other_rules(split):
    model, params, tokenizer = made(split)
    for valid in (True, False):
        tree = byte_view(model, params, tokenizer, valid=valid)
        search = byte_view(model, params, tokenizer, valid=valid, implementation="search")
        ours, theirs = tree.next_byte(PROMPTS, end=False), search.next_byte(PROMPTS, end=False)
        np.testing.assert_allclose(np.exp(ours), np.exp(theirs), rtol=1e-4, atol=1e-9)
    strict = byte_view(model, params, tokenizer, implementation="search").next_byte(PROMPTS)
    assert np.abs(np.exp(strict) - np.exp(search.next_byte(PROMPTS))).max() > 1e-3


def test_every_encoding_of_a_language_model():
    """Convention "all" by its own definition: sequences of any tokens, written out."""
    model, params, tokenizer = made(merges=6)
    letters = [*b"the ca", *range(256, 262)]
    view = SearchBytes(FullPass(model, params), tokenizer, "all", usable_ids=letters)
    found = view.start(["the"]).log_masses()[0]
    apply, head = FullPass(model, params), (tokenizer.special(BOS),)
    for byte in b"h ca":
        every = covers(tokenizer, b"the" + bytes([byte]), letters, valid=False)
        rows = iter(apply([(*head, *cover[:k]) for cover in every for k in range(len(cover))]))
        truth = np.logaddexp.reduce([sum(next(rows)[token] for token in cover) for cover in every])
        np.testing.assert_allclose(found[byte], truth, rtol=1e-6, atol=1e-6)


def test_bytes_as_tokens_are_the_model_itself():
    spec = tiny({"position": "rotary"}, repeats=1, vocab_size=259)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    view = byte_view(model, params, ByteTokenizer())
    found = view.next_byte(["abc", ""])
    rows = FullPass(model, params)([(256, *b"abc"), (256,)])
    rows = np.concatenate([rows[:, :256], rows[:, 257:258]], 1)
    np.testing.assert_allclose(found, rows - np.logaddexp.reduce(rows, 1, keepdims=True), rtol=1e-5, atol=1e-5)


def test_samples_follow_the_distribution():
    """Two bytes behind a prompt that ends inside a token, against their exact joint probabilities."""
    model, params, tokenizer = made()
    view, rows = byte_view(model, params, tokenizer), 3000
    texts = view.generate(["the ca"] * rows, 2, 1.0, jax.random.key(0))
    exact = byte_view(model, params, tokenizer, implementation="search")
    first = np.exp(exact.next_byte(["the ca"]))[0]
    likely = [byte for byte in np.argsort(first)[-5:].tolist() if byte < 256]
    expected = {b"": first[256]}
    for byte, row in zip(likely, np.exp(exact.next_byte([b"the ca" + bytes([b]) for b in likely])), strict=True):
        begun = bytes([byte])
        expected |= {begun: first[byte] * row[256]}
        expected |= {begun + bytes([b]): first[byte] * row[b] for b in range(256)}
    kept = {text: float(share) * rows for text, share in expected.items() if share * rows > 5}
    assert len(kept) > 5
    counts = [texts.count(text) for text in kept]
    observed, hoped = [*counts, rows - sum(counts)], [*kept.values(), rows - sum(kept.values())]
    assert stats.chisquare(observed, hoped).pvalue > 1e-3


def test_a_text_is_its_own():
    """Neither the batch nor the place in it changes one; noise belongs to (key, row id, step)."""
    model, params, tokenizer = made()
    view, key = byte_view(model, params, tokenizer), jax.random.key(3)
    together = view.generate(PROMPTS, 10, 1.0, key)
    order = [4, 0, 6, 2, 1, 3, 5]
    assert view.generate([PROMPTS[i] for i in order], 10, 1.0, key, rows=order) == [together[i] for i in order]
    assert view.generate(PROMPTS, 10, 1.0, jax.random.key(4)) != together
    assert [text[:4] for text in together] == [text[:4] for text in view.generate(PROMPTS, 4, 1.0, key)]


def test_texts_end():
    model, params, tokenizer = made()
    for implementation in ("tree", "search"):
        view = byte_view(model, params, tokenizer, implementation=implementation)
        free = view.generate(PROMPTS, 10)
        stop = free[0][2:4]
        stopped = view.generate(PROMPTS, 10, stop=[stop, b"never in there"])
        cut = [text.find(stop) for text in free]
        assert stopped == [text if at < 0 else text[: at + len(stop)] for text, at in zip(free, cut, strict=True)]
        assert stopped[0] == free[0][:4]
        letters = tuple(np.unique(tokenizer.encode(b"".join(free))).tolist())
        ended = byte_view(model, params, tokenizer, ends=letters, implementation=implementation)
        assert any(len(text) < 10 for text in ended.generate(PROMPTS, 10, 1.0, jax.random.key(0)))


def test_greedy_is_the_likeliest():
    model, params, tokenizer = made()
    tree, search = byte_view(model, params, tokenizer), byte_view(model, params, tokenizer, implementation="search")
    texts = tree.generate(PROMPTS, 10)
    for i in range(0, 10, 3):
        said = search.next_byte([b"the ca" + texts[0][:i], b"that t" + texts[2][:i]])
        assert said.argmax(1).tolist() == [texts[0][i], texts[2][i]]
    assert tree.generate(PROMPTS, 10, 1e-3, jax.random.key(0)) == texts


def test_scores_are_the_steps():
    model, params, tokenizer = made()
    view = byte_view(model, params, tokenizer)
    texts = ["t on the", "aab", "x", "", "b", "bb", "t"]
    bits = view.score(texts, PROMPTS)
    assert [len(row) for row in bits] == [len(text) for text in texts]
    begun = [prompt if isinstance(prompt, bytes) else prompt.encode() for prompt in PROMPTS]
    for i in (0, 2):
        said = view.next_byte([before + text[:i].encode() for before, text in zip(begun, texts, strict=True)])
        for row, text, found in zip(bits, texts, said, strict=True):
            if i < len(text):
                np.testing.assert_allclose(row[i], -found[ord(text[i])] / np.log(2), rtol=1e-4, atol=1e-5)
    alone = view.score(["the cat", *texts[1:]])
    np.testing.assert_allclose(view.score(["the", *texts[1:]])[0], alone[0][:3], rtol=1e-5)


def test_ensembles_average_bytes():
    """Of different vocabularies; in jit and on the host; and one member is itself."""
    members = [made(), made((), 12, seed=1)]
    trees = [byte_view(*member) for member in members]
    searches = [byte_view(*member, implementation="search") for member in members]
    both, alone = Ensemble(trees), Ensemble(trees[:1])
    mean = np.mean([np.exp(view.next_byte(PROMPTS)) for view in trees], 0)
    np.testing.assert_allclose(np.exp(both.next_byte(PROMPTS)), mean, rtol=1e-5, atol=1e-9)
    arguments = (PROMPTS, 8, 1.0, jax.random.key(0))
    assert both.generate(*arguments) == Ensemble([trees[0], searches[1]]).generate(*arguments)
    assert alone.generate(*arguments) == trees[0].generate(*arguments)
    with pytest.raises(ConfigError, match="ids of one tokenizer"):
        both.generate([Prompt((1,), "a")])
    with pytest.raises(ConfigError, match="one or more"):
        Ensemble([])


@pytest.mark.parametrize("use_regex", [True, False])
def test_files_of_other_tokenizers(tmp_path, use_regex):
    """Byte-level BPE of a tokenizer.json: with GPT-2's expression the search serves, without it the tree does, too."""
    tokenizer = hf_byte_level(tmp_path, use_regex)
    spec = tiny({"position": "rotary"}, repeats=1, vocab_size=tokenizer.vocab_size)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    view, head = byte_view(model, params, tokenizer), (tokenizer.special(BOS),)
    assert isinstance(view, SearchBytes if use_regex else TreeBytes)
    prompts = [Prompt(head, text) for text in ("the ca", "a  b", "ab\n\na", "")]
    search = byte_view(model, params, tokenizer, implementation="search")
    found, masses = view.next_byte(prompts), search.start(prompts).log_masses()
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    for prompt, row, mass in zip(prompts, found, masses, strict=True):
        truth = [written_out(model, params, tokenizer, prompt.data, byte) for byte in (*b"ab the\n", 256)]
        np.testing.assert_allclose(mass[[*b"ab the\n", 256]], truth, rtol=1e-6, atol=1e-6)
        log_total = np.logaddexp.reduce(mass)
        np.testing.assert_allclose(row[[*b"ab the\n", 256]], np.array(truth) - log_total, rtol=1e-6, atol=1e-5)
    texts = view.generate(prompts, 6, 1.0, jax.random.key(0))
    assert texts == search.generate(prompts, 6, 1.0, jax.random.key(0))


def test_texts_that_a_normalizer_changes_are_refused(tmp_path):
    """Whose encoding is that of another text; one that it leaves alone has the probabilities of the plain tokenizer."""
    plain = hf_byte_level(tmp_path, False)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(tmp_path / "tokenizer_config.json", tmp_path / "lower")
    lower = HfTokenizer.from_folder(tmp_path / "lower")
    spec = tiny({"position": "rotary"}, repeats=1, vocab_size=lower.vocab_size)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    head = (lower.special(BOS),)
    with pytest.raises(ConfigError, match="changes 'the Ca' to 'the ca'|changes b'the Ca' to b'the ca'") as error:
        byte_view(model, params, lower).next_byte([Prompt(head, "the Ca")])
    assert "\n" not in str(error.value)
    found = byte_view(model, params, lower).next_byte([Prompt(head, "the ca")])[0, list(b"abt ")]
    truth = byte_view(model, params, plain).next_byte([Prompt(head, "the ca")])[0, list(b"abt ")]
    np.testing.assert_allclose(np.exp(found), np.exp(truth), rtol=1e-4)


def test_what_an_end_of_a_text_decides_is_looked_up_once():
    """The search encodes from the last word on; a token that spans words forbids it."""
    model, params, tokenizer = made(("gpt2",))
    view = SearchBytes(FullPass(model, params), tokenizer)
    long, short = view.following(b"the cat sat on the"), view.following(b"ate the")
    assert [ids.tolist() for _, ids, _ in long] == [ids.tolist() for _, ids, _ in short]
    assert len(view._known) == 1 and (b" the", b"") in view._known
    spans = SearchBytes(FullPass(model, params), made(())[2], valid=False)
    assert spans._spanned != view._spanned


def test_fill_in_the_middle():
    names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    tokenizer = BpeTokenizer(((97, 98),), specials=(BOS, *names))
    bos, pre, suf, mid = (tokenizer.special(name) for name in (BOS, *names))
    assert fill_in_the_middle(tokenizer, "xab", "abx") == Prompt((bos, pre, suf, 256, 120, mid), "xab")
    psm = fill_in_the_middle(tokenizer, "xab", "abx", order="psm")
    assert psm == Prompt((bos, pre, 120, 256, suf, 256, 120, mid), "")
    plain = fill_in_the_middle(tokenizer, b"xab", "", order="spm_plain")
    assert plain == Prompt((bos, suf, pre, 120, 256, mid), "")
    spec = tiny({"position": "rotary"}, repeats=1, vocab_size=tokenizer.vocab_size)
    model, params = jaxlm.LanguageModel(spec), params_of(spec)
    prompt = fill_in_the_middle(tokenizer, "xa", "bx")
    found = byte_view(model, params, tokenizer).next_byte([prompt])[0]
    apply = lambda *ids: FullPass(model, params)([(*prompt.head, *ids)])[0]
    spelt = apply()[120] + apply(120)[97] + apply(120, 97)[ord("c")]
    joined = apply()[120] + apply(120)[256]  # the token ab begins in the prefix and ends in the middle
    np.testing.assert_allclose(found[ord("b")] - found[ord("c")], joined - spelt, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="has no <fim_suffix>"):
        fill_in_the_middle(BpeTokenizer(specials=names[:1]), "", "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda view: view.next_byte([]), "prompts: expected a list"),
        (lambda view: view.next_byte("abc"), "prompts: expected a list"),
        (lambda view: view.next_byte([3]), "expected text, bytes or Prompt, got int"),
        (lambda view: view.next_byte([Prompt((9999,), "")]), "Prompt.head: id \\[9999\\] is outside"),
        (lambda view: view.next_byte([Prompt((), "")]), "says nothing about a first token"),
        (lambda view: view.generate(["a"], 0), "max_new_bytes"),
        (lambda view: view.generate(["a"], 3, 0.5), "needs key="),
        (lambda view: view.generate(["a"], 3, -1.0), "temperature"),
        (lambda view: view.generate(["a"], 3, stop="."), "stop: expected a sequence"),
        (lambda view: view.generate(["a"], 3, stop=[""]), "empty string"),
        (lambda view: view.generate(["a"], 3, rows=[1, 2]), "rows: expected 1 ids"),
        (lambda view: view.generate(["a"], 3, rows=[-1]), "rows: expected 1 ids"),
        (lambda view: view.generate(["a " * 40], 3), "position encoding can represent 16"),
        (lambda view: view.score(["a"], ["b", "c"]), "one for each prompt"),
        (lambda view: view.score([""]), "all are empty"),
    ],
)
@pytest.mark.parametrize("implementation", ["tree", "search"])
def test_bad_arguments_are_one_line(implementation, call, message):
    tokenizer = made()[2]
    spec = tiny({"position": {"name": "learned", "args": {"size": 16}}}, repeats=1, vocab_size=tokenizer.vocab_size)
    view = byte_view(jaxlm.LanguageModel(spec), params_of(spec), tokenizer, implementation=implementation)
    with pytest.raises(ConfigError, match=message) as error:
        call(view)
    assert "\n" not in str(error.value)


def test_bad_views_are_one_line():
    model, params, tokenizer = made()
    gpt2 = BpeTokenizer(tokenizer.merges, split=("gpt2",))
    scaled = tiny({"position": {"name": "rotary", "args": {"scaling": "dynamic"}}}, vocab_size=tokenizer.vocab_size)
    for call, message in (
        (lambda: byte_view(model, params, tokenizer, "most"), "unknown convention 'most'"),
        (lambda: byte_view(model, params, tokenizer, implementation="trie"), "unknown implementation 'trie'"),
        (lambda: byte_view(model, params, BpeTokenizer.train(TEXTS, 290)), "belong to different checkpoints"),
        (
            lambda: byte_view(model, params, tokenizer, "all", implementation="tree"),
            "convention 'canonical', not 'all'",
        ),
        (lambda: byte_view(model, params, tokenizer, "all", valid=False), "a mode of convention 'canonical'"),
        (lambda: byte_view(model, params, gpt2, implementation="tree"), "needs plain byte pair encoding"),
        (lambda: TreeBytes(jaxlm.LanguageModel(scaled), params_of(scaled), tokenizer), "scales with the length"),
        (
            lambda: SearchBytes(FullPass(model, params), tokenizer, "all", most=3).start(["aaaa aaab"]),
            "more than 3 encodings",
        ),
        (lambda: byte_view(model, params, tokenizer, ends=[9999]), "ends"),
        (lambda: byte_view(model, None, tokenizer), "a LanguageModel needs its params"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
