"""Another tokenizer for a trained model: kept rows, new rows, logits that stay, folders, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.edit.landmark import LandmarkTokens
from jaxlm.interop.embedding_init import METHODS
from jaxlm.interop.save_vocabulary import save_vocabulary
from jaxlm.interop.vocabulary import (
    ROWS,
    Auxiliary,
    auxiliary_vectors,
    extend_vocabulary,
    new_rows_only,
    swap_vocabulary,
)
from jaxlm.tokenize.base import BOS, EOS, PAD
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.tokenize.character import CharacterTokenizer
from jaxlm.tokenize.hf import HfTokenizer
from jaxlm.tokenize.overlap import overlap
from tests.interop.test_families import DATA
from tests.tiny import caller, params_of
from tests.tokenize.test_hf import TEXT, byte_level, fallback_bpe
from tests.tokenize.test_overlap import hf, incomplete

OLD = BpeTokenizer.train(TEXT, 290)
NEW = BpeTokenizer.train([" ".join(reversed(text.split())) for text in TEXT[:3]], 310)
MODELS = ("llama", "gpt2", "phi")  # untied, tied, with biases of the logits


def model_of(kind, rows, seed=0, **changes):
    """A tiny model of a family with that many rows, in which no two are alike."""
    spec = jaxlm.load_hf(DATA / kind)[0].spec
    layers = (dataclasses.replace(spec.layers[0], repeats=1),)
    spec = dataclasses.replace(spec, vocab_size=rows, layers=layers, remat="none", **changes)
    return jaxlm.LanguageModel(spec), params_of(spec, seed)


def by_row(params, path):
    part, name = path.split("/")
    if name not in params.get(part, {}):
        return None
    array = np.asarray(params[part][name])
    return array.T if ROWS[path] == 1 else array


def rows_of(params):
    return {path: rows for path in ROWS if (rows := by_row(params, path)) is not None}


def logits(model, params, tokens):
    return np.asarray(caller(model.spec)(params, jnp.asarray(tokens)[None])[0][0])


def same_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("padding", [0, 6])
def test_swapping_for_itself_is_the_identity(kind, padding):
    model, params = model_of(kind, OLD.vocab_size + padding)
    for init in ("mean_of_pieces", "random"):
        after, same = swap_vocabulary(model, params, OLD, OLD, init)
        assert after.spec == model.spec and after.origin == ""
        same_bits(params, same)


def test_swapping_checkpoints_tokenizers_for_themselves(tmp_path):
    """With fallback bytes that spell what other tokens spell, and special tokens of several roles."""
    for name, library in (("a", byte_level()), ("b", fallback_bpe())):
        tokenizer = hf(tmp_path / name, library, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
        model, params = model_of("llama", tokenizer.vocab_size)
        same_bits(params, swap_vocabulary(model, params, tokenizer, tokenizer)[1])


@pytest.mark.parametrize("kind", MODELS)
def test_rows_of_a_swap(kind):
    """Against the definition, token by token: counterparts copied, the others the average of their pieces."""
    model, params = model_of(kind, OLD.vocab_size + 3)
    after, swapped = swap_vocabulary(model, params, OLD, NEW, pad_to_multiple=16)
    assert after.spec == dataclasses.replace(model.spec, vocab_size=320)
    assert {path for path, _ in rows_of(swapped).items()} == {path for path, _ in rows_of(params).items()}
    known = {piece: i for i, piece in enumerate(OLD.token_bytes) if piece}
    copied = 0
    for path, new in rows_of(swapped).items():
        old = by_row(params, path)
        assert len(new) == 320
        for i, piece in enumerate(NEW.token_bytes):
            if piece in known:
                np.testing.assert_array_equal(new[i], old[known[piece]])
                copied += 1
            elif piece:
                pieces = OLD.encode(piece)
                np.testing.assert_allclose(new[i], old[pieces].mean(0), rtol=1e-5, atol=1e-6)
        for role in (BOS, EOS, PAD):
            np.testing.assert_array_equal(new[NEW.special(role)], old[OLD.special(role)])
        np.testing.assert_array_equal(new[310:313], old[-3:])  # padding of old is padding of new
        mean = old[[i for i, piece in enumerate(OLD.token_bytes) if piece]].mean(0)
        np.testing.assert_allclose(new[313:], np.broadcast_to(mean, new[313:].shape), rtol=1e-5, atol=1e-6)
    assert 256 * len(rows_of(swapped)) <= copied < NEW.vocab_size * len(rows_of(swapped))
    others = [name for name in params if name not in ("embed", "head")]
    same_bits([params[name] for name in others], [swapped[name] for name in others])


@pytest.mark.parametrize("kind", MODELS)
def test_renumbered_tokens_renumber_the_logits(kind):
    """A tokenizer with the same tokens under other ids gives the same model."""
    shuffled = dataclasses.replace(NEW, specials=(PAD, EOS, BOS))
    model, params = model_of(kind, NEW.vocab_size)
    after, swapped = swap_vocabulary(model, params, NEW, shuffled, "random")
    moved = overlap(NEW, shuffled)
    assert sorted(moved) == list(range(NEW.vocab_size)) and (moved != np.arange(len(moved))).any()
    ids = np.concatenate([[shuffled.special(BOS)], shuffled.encode(TEXT[0])[:8], [shuffled.special(EOS)]])
    np.testing.assert_allclose(logits(after, swapped, ids), logits(model, params, moved[ids])[:, moved], atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("padding", [0, 20])
def test_extension_keeps_old_logits(kind, padding):
    old = dataclasses.replace(OLD, specials=())
    larger = BpeTokenizer(merges=(*old.merges, (ord("q"), ord("u")), (ord("f"), ord("o"))), specials=(EOS,))
    model, params = model_of(kind, old.vocab_size + padding)
    after, extended = extend_vocabulary(model, params, old, larger, "covariance")
    size = old.vocab_size
    assert after.spec.vocab_size == max(larger.vocab_size, size + padding)
    for path, new in rows_of(extended).items():
        assert new[:size].tobytes() == by_row(params, path)[:size].tobytes()
        assert len(np.unique(new[size : size + 3], axis=0)) == 3
    ids = old.encode(TEXT[0])[:10]
    # The same sums; how they are cut into pieces depends on the size of the matrix.
    np.testing.assert_allclose(logits(after, extended, ids)[:, :size], logits(model, params, ids)[:, :size], atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_training_the_new_rows_only(kind):
    """With weight decay and momentum, no bit of an old row or of another parameter moves; every new row does."""
    first = 290
    model, params = model_of(kind, 300)
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    gradients = params_of(model.spec, seed=1)

    def step(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, new_rows_only(updates, first)), state

    trained, state = params, optimizer.init(params)
    for _ in range(2):
        trained, state = jax.jit(step)(trained, state)
    for path, rows in rows_of(trained).items():
        before = by_row(params, path)
        assert rows[:first].tobytes() == before[:first].tobytes()
        assert (rows[first:] != before[first:]).reshape(10, -1).any(1).all()
    others = [name for name in params if name not in ("embed", "head")]
    same_bits([params[name] for name in others], [trained[name] for name in others])


@pytest.mark.parametrize("init", METHODS)
def test_every_method_from_texts(init):
    model, params = model_of("llama", OLD.vocab_size, dtype="bfloat16")
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    after, swapped = swap_vocabulary(model, params, OLD, NEW, init, texts=TEXT, seed=3)
    again = swap_vocabulary(model, params, OLD, NEW, init, texts=TEXT, seed=3)[1]
    same_bits(swapped, again)
    assert {leaf.dtype for leaf in jax.tree.leaves(swapped)} == {jnp.dtype("bfloat16")}
    shared = overlap(OLD, NEW)
    for path, rows in rows_of(swapped).items():
        assert np.isfinite(rows.astype(np.float32)).all()
        old = by_row(params, path)
        assert rows[shared >= 0].tobytes() == old[shared[shared >= 0]].tobytes()
    assert after.spec == dataclasses.replace(model.spec, vocab_size=NEW.vocab_size)


def test_input_and_output_are_drawn_apart():
    model, params = model_of("llama", OLD.vocab_size)
    params = {**params, "head": {"kernel": params["embed"]["table"].T}}
    _, swapped = swap_vocabulary(model, params, OLD, NEW, "random")
    rows, new = rows_of(swapped), overlap(OLD, NEW) < 0
    one, two = rows["embed/table"][new], rows["head/kernel"][new]
    assert (one != two).any() and abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.2


def test_vectors_from_files(tmp_path):
    rng = np.random.default_rng(0)
    target, source = rng.standard_normal((NEW.vocab_size, 5)), rng.standard_normal((OLD.vocab_size, 5))
    np.savez(tmp_path / "v.npz", target=target, source=source)
    found = auxiliary_vectors("ofa", OLD, NEW, vectors=str(tmp_path / "v.npz"))
    np.testing.assert_array_equal(found.target, target)
    np.testing.assert_array_equal(found.source, source)
    (tmp_path / "v.vec").write_text("2 2\nquick 1 0\nfox 0 -2\n")
    found = auxiliary_vectors("wechsel", OLD, NEW, vectors=str(tmp_path / "v.vec"), texts=[b"a quick quick fox"])
    for tokenizer, rows in ((NEW, found.target), (OLD, found.source)):
        for word, vector in ((b" quick", [1, 0]), (b" fox", [0, -2])):
            np.testing.assert_allclose(rows[tokenizer.encode(word)[-1]], vector)
        assert not rows[ord("z")].any()  # of no word
    assert auxiliary_vectors("random", OLD, NEW).target is None


# Folders.


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A Llama and a tied GPT-2 with a tokenizer's files, settings of generation, and another tokenizer's folder."""
    folder = tmp_path_factory.mktemp("checkpoints")
    other = hf(folder / "other", byte_level(), eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    tokenizer = hf(folder / "old", fallback_bpe(), bos_token="<s>", eos_token="</s>")
    for kind in ("llama", "gpt2"):
        model, params = model_of(kind, tokenizer.vocab_size + 4)
        path = jaxlm.save_hf(model, params, folder / kind, family=kind)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / "old" / name, path / name)
        settings = json.loads((path / "config.json").read_text())
        settings |= {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.123, "sep_token_id": 2}
        (path / "config.json").write_text(json.dumps(settings))
        generation = {"eos_token_id": [2, 1], "temperature": 0.5, "suppress_tokens": [7]}
        (path / "generation_config.json").write_text(json.dumps(generation))
        (path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
        (path / "README.md").write_text("# The card of the import")
    return folder, other


def swapped_folder(checkpoints, kind, out, note=""):
    folder, other = checkpoints
    model, params = jaxlm.load_hf(folder / kind)
    source = HfTokenizer.from_folder(folder / kind)
    after, swapped = swap_vocabulary(model, params, source, other)
    save_vocabulary(after, swapped, out, origin=folder / kind, tokenizer=other, note=note)
    return after, swapped


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_folder_with_another_tokenizer(checkpoints, kind, tmp_path):
    folder, other = checkpoints
    after, swapped = swapped_folder(checkpoints, kind, tmp_path / "out", "Said here.")
    model, params = jaxlm.load_hf(tmp_path / "out")
    assert model.spec == after.spec
    same_bits(params, swapped)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    end = other.special(EOS)
    assert settings["vocab_size"] == other.vocab_size and settings["initializer_range"] == 0.123
    assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (end, end, None)
    assert "sep_token_id" not in settings
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.5, "bos_token_id": end, "eos_token_id": end}
    assert HfTokenizer.from_folder(tmp_path / "out").token_bytes == other.token_bytes
    names = {path.name for path in (tmp_path / "out").iterdir()}
    files = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert names == files | {"tokenizer.json", "tokenizer_config.json"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"a tokenizer of {other.vocab_size:,} tokens. Said here." in card and "The card of the import" in card
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_tokenizer_of_ours(checkpoints, tmp_path):
    folder, _ = checkpoints
    model, params = jaxlm.load_hf(folder / "llama")
    after, swapped = swap_vocabulary(model, params, HfTokenizer.from_folder(folder / "llama"), NEW)
    save_vocabulary(after, swapped, tmp_path / "out", origin=folder / "llama", tokenizer=NEW)
    written = HfTokenizer.from_folder(tmp_path / "out")
    np.testing.assert_array_equal(written.encode(TEXT[0]), NEW.encode(TEXT[0]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == NEW.special(PAD)
    other = CharacterTokenizer.train(["abc"])
    with pytest.raises(ConfigError, match="a 'character' tokenizer has no tokenizer.json; allowed: a Hugging Face"):
        save_vocabulary(after, swapped, tmp_path / "no", origin=folder / "llama", tokenizer=other)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_transformers_loads_it(checkpoints, kind, tmp_path):
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    after, swapped = swapped_folder(checkpoints, kind, tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the quick brown fox, naïvely"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == HfTokenizer.from_folder(tmp_path / "out").encode(text).tolist()
    assert theirs.config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        out = theirs.float().eval()(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(out, logits(after, swapped, ids), rtol=0, atol=1e-4)


# Refusals.


def _llama(**changes):
    return model_of("llama", OLD.vocab_size, **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swap_vocabulary(*_llama(), NEW, OLD), "has ids 0..309, the model's vocabulary only 0..289"),
        (lambda: swap_vocabulary(*_llama(), OLD, NEW, "meen"), "unknown embedding_init 'meen'; did you mean 'mean'"),
        (lambda: swap_vocabulary(*_llama(), OLD, NEW, "focus"), "Focus needs auxiliary vectors: give texts"),
        (
            lambda: swap_vocabulary(*_llama(), OLD, NEW, "wechsel", auxiliary=Auxiliary(np.ones((310, 3)))),
            "Wechsel needs auxiliary vectors of the source tokens",
        ),
        (
            lambda: swap_vocabulary(*_llama(), OLD, NEW, "focus", auxiliary=Auxiliary(np.ones((3, 3)))),
            r"auxiliary_target: expected a vector for each of 310 tokens, got shape \[3, 3\]",
        ),
        (lambda: swap_vocabulary(*_llama(), OLD, NEW, pad_to_multiple=-8), "pad_to_multiple: expected 0"),
        (
            lambda: extend_vocabulary(*_llama(), OLD, ByteTokenizer()),
            "has 259 ids, the old one 290; it is no extension",
        ),
        (lambda: extend_vocabulary(*_llama(), OLD, NEW), "does not keep the old ids: 2"),
        (
            lambda: swap_vocabulary(*_llama(edit=LandmarkTokens(period=8)), OLD, NEW),
            "sequence edit has tokens of its own",
        ),
        (lambda: swap_vocabulary(*_llama(), OLD, NEW, texts=["a"], init="focus"), "have no two tokens in a row"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_bad_tokenizers_and_files(tmp_path):
    few = hf(tmp_path / "few", incomplete())
    model, params = model_of("llama", OLD.vocab_size)
    small = model_of("llama", few.vocab_size)
    (tmp_path / "a.vec").write_text("2 3\nword 1 2 3\n")
    (tmp_path / "b.vec").write_text("1 3\nword 1 2\n")
    (tmp_path / "c.vec").write_text("word 1 2 3\n")
    (tmp_path / "d.npz").write_bytes(b"PK")
    np.savez(tmp_path / "e.npz", other=np.ones((3, 3)))
    np.savez(tmp_path / "f.npz", target=np.ones((3, 3)))
    vectors = lambda name: auxiliary_vectors("focus", OLD, NEW, vectors=str(tmp_path / name))
    for call, message in [
        (lambda: swap_vocabulary(model, params, OLD, few), "no token for 253 of the 256 bytes"),
        (lambda: swap_vocabulary(*small, few, OLD), "cannot spell the new token"),
        (lambda: vectors("a.vec"), "promises 2 words, the file has 1"),
        (lambda: vectors("b.vec"), "line 2 is not a word and 3 numbers"),
        (lambda: vectors("c.vec"), "line 1 should hold a count and a width"),
        (lambda: vectors("none.vec"), "cannot be read: No such file"),
        (lambda: vectors("d.npz"), "cannot be read as .npz"),
        (lambda: vectors("none.npz"), "cannot be read as .npz"),
        (lambda: vectors("e.npz"), r"has arrays \['other'\]; expected target or source"),
        (lambda: vectors("f.npz"), r"target should be finite floats \[310, A\], got float64 \[3, 3\]"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert swap_vocabulary(*small, few, OLD, "mean")[0].spec.vocab_size == OLD.vocab_size  # needs no pieces
