"""Encoders as transformers recorded them (`tests/interop/data`): padding, types, globals, short rows, and long ones."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Globals, Window
from jaxlm.core.errors import ConfigError
from jaxlm.interop.config import Config
from jaxlm.interop.load import family_of
from jaxlm.mixer.big_bird import BigBird
from jaxlm.model import decoder
from jaxlm.ops.block_map import block_map
from tests.interop.architectures import CASES, generates
from tests.interop.test_families import DATA, TOLERANCE, loaded, recorded
from tests.tiny import close

ENCODERS = sorted(name for name in CASES if not generates(name))
every = pytest.mark.parametrize("name", ENCODERS)


def logits_of(name, tokens, changes=None, **inputs) -> np.ndarray:
    model, params = loaded(name)
    model = jaxlm.replace(model, changes or {})
    return np.asarray(jax.jit(lambda p, x, more: model.apply({"params": p}, x, **more).logits)(params, tokens, inputs))


def longer(model, params, length: int):
    """The model with positions for ``length`` tokens, drawn."""
    offset = model.spec.layers[0].pattern[0].mixer.position.offset
    table = np.random.default_rng(0).standard_normal((length + offset, model.spec.width)).astype(np.float32)
    params = {**params, "position": {"learned": {"table": jnp.asarray(table)}}}
    return jaxlm.replace(model, {"mixer.position.size": length}), params


def same(found: np.ndarray, wanted: np.ndarray, mask: np.ndarray | None = None) -> None:
    keep = np.ones(found.shape[:2], bool) if mask is None else mask != 0
    np.testing.assert_allclose(found[keep], wanted[keep], rtol=0, atol=TOLERANCE)


@every
def test_padding(name):
    """Segment 0 is transformers' attention mask of 0, whatever tokens stand there."""
    expected = recorded(name)
    mask = expected["attention_mask"]
    same(logits_of(name, expected["input_ids"], segment_ids=mask), expected["padded_logits"], mask)
    assert np.abs(expected["padded_logits"] - expected["logits"])[1, : mask[1].sum()].max() > 0.05


@every
def test_short_rows(name):
    """Which BigBird attends in full."""
    expected = recorded(name)
    short = expected["short_logits"]
    same(logits_of(name, expected["input_ids"][:, : short.shape[1]]), short)


@pytest.mark.parametrize("name", [name for name in ENCODERS if "token_types" in recorded(name)])
def test_token_types(name):
    expected = recorded(name)
    found = logits_of(name, expected["input_ids"], token_types=expected["token_types"])
    same(found, expected["typed_logits"])
    assert np.abs(found - expected["logits"]).max() > 0.05


@pytest.mark.parametrize("name", ["longformer", "longformer_one_window"])
def test_global_tokens(name):
    expected = recorded(name)
    chosen = {"mixer.global_tokens": tuple(expected["global_tokens"].tolist())}
    mask = expected["attention_mask"]
    found = logits_of(name, expected["input_ids"], chosen, segment_ids=mask)
    same(found, expected["global_logits"], mask)
    assert np.abs(found - expected["padded_logits"])[mask != 0].max() > 0.05


def test_global_tokens_of_packed_documents():
    """Each document of a row has its own: as the documents by themselves."""
    tokens = recorded("longformer")["input_ids"]
    chosen = {"mixer.global_tokens": (0, 5)}
    segments = np.repeat([[1] * 9 + [2] * 13], len(tokens), 0).astype(np.int32)
    packed = logits_of("longformer", tokens, chosen, segment_ids=segments)
    close(packed[:, :9], logits_of("longformer", tokens[:, :9], chosen))
    close(packed[:, 9:], logits_of("longformer", tokens[:, 9:], chosen))


def test_global_tokens_are_kept(tmp_path):
    model, params = loaded("longformer")
    chosen = jaxlm.replace(model, {"mixer.global_tokens": (0, 5)})
    jaxlm.save_hf(chosen, params, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["global_attention_positions"] == [0, 5]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: fill-mask" in card and "AutoModelForMaskedLM.from_pretrained" in card
    again = jaxlm.load_hf(tmp_path / "out")[0].spec
    assert {block.mixer.global_tokens for group in again.layers for block in group.pattern} == {(0, 5)}


def test_a_choice_transformers_does_not_have_is_refused(tmp_path):
    model, params = loaded("big_bird")
    drawn = jaxlm.replace(model, {"mixer.choice": "drawn"})
    with pytest.raises(ConfigError, match="big_bird cannot express this model: .*choice is 'drawn'.*'first'"):
        jaxlm.save_hf(drawn, params, tmp_path / "out", family="big_bird")


@every
def test_described_and_pooled(name):
    model, params = loaded(name)
    assert f"parameters: {sum(x.size for x in jax.tree.leaves(params)):,}" in jaxlm.describe(model)
    out = model.apply({"params": params}, recorded(name)["input_ids"], logits=False)
    assert out.logits is None and (out.pooled is not None) == name.startswith("big_bird")
    if out.pooled is not None:
        p = params["pooler"]
        close(out.pooled, np.tanh(np.asarray(out.hidden)[:, 0] @ np.asarray(p["kernel"]) + np.asarray(p["bias"])))


def test_what_an_encoder_cannot_do_is_said():
    for name in ("longformer", "big_bird"):
        model, _ = loaded(name)
        with pytest.raises(ConfigError, match=f"mixer '{name}' looks ahead: it has no state"):
            jaxlm.init_state(model, 1, 8)


LONG = [("longformer", {"mixer.global_tokens": (0, 700)}), ("big_bird", {"mixer.block": 16, "mixer.random": 3})]


@pytest.mark.parametrize(("name", "changes"), LONG)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_long_rows_by_block_lists(name, changes, padded):
    """At lengths that XLA does not attend to densely, the logits are the reference's."""
    length, real = 1300, 1210
    model, params = longer(*loaded(name), length)
    tokens = np.random.default_rng(1).integers(3, model.spec.vocab_size, (1, length)).astype(np.int32)
    segments = (np.arange(length) < real).astype(np.int32)[None] if padded else None

    def call(implementation: str) -> np.ndarray:
        spec = jaxlm.replace(model, {**changes, "mixer.implementation": implementation}).spec
        out = jax.jit(lambda p: decoder.forward(spec, p, tokens, segment_ids=segments).logits)(params)
        return np.asarray(out)[0, : real if padded else length]

    close(call("xla"), call("reference"), 1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "changes"), LONG)
def test_long_rows_in_transformers(name, changes, tmp_path):
    """Padded rows of a model that we export, with a head of its own: by block lists here, by its own code there."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    length, real = 1300, 1210
    model, params = longer(*loaded(name), length + 12)  # transformers fills windows and blocks
    model = jaxlm.replace(model, {**changes, "model.tied_head": False})
    kernel = np.random.default_rng(2).standard_normal((model.spec.width, model.spec.vocab_size)).astype(np.float32) / 5
    params = {**params, "head": {**params["head"], "kernel": jnp.asarray(kernel)}}
    jaxlm.save_hf(jaxlm.LanguageModel(model.spec), params, tmp_path / "out", family=name)
    theirs, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    mask = (np.arange(length) < real).astype(np.int32)[None]
    tokens = np.random.default_rng(1).integers(3, model.spec.vocab_size, (1, length)).astype(np.int32)
    inputs = {"input_ids": np.where(mask, tokens, theirs.config.pad_token_id), "attention_mask": mask}
    if chosen := changes.get("mixer.global_tokens"):
        inputs["global_attention_mask"] = np.isin(np.arange(length), chosen)[None]
    with torch.no_grad():
        wanted = theirs.eval()(**{key: torch.from_numpy(x).long() for key, x in inputs.items()}).logits.numpy()
    found = jax.jit(lambda p: decoder.forward(model.spec, p, tokens, segment_ids=mask).logits)(params)
    same(np.asarray(found), wanted, mask)


def test_lists_grow_with_the_length():
    """Not with its square: of BigBird's usual setting a query block meets few tiles, the two ends apart."""
    tiles = (128, 128)
    for choice in ("first", "drawn"):
        for length in (4096, 16384):
            mask, again = BigBird(choice=choice).masks(length)
            for part in (mask, *(more for more, _ in again)):
                counts = block_map(part, (length, length), tiles).rows.counts[0, 0]
                assert counts[1:-1].max() <= 12 and counts.sum() <= 12 * len(counts) + 2 * len(counts)
    window = Window(257, ahead=256) | Globals((0,), queries=False)
    assert block_map(window, (16384, 16384), tiles).rows.counts.max() <= 6
    assert block_map(Globals((0,), keys=False), (16384, 16384), tiles).rows.counts.sum() == 128  # of one query block


BAD = [
    ("longformer", {"attention_window": [4, 8]}, "attention_window has 2 entries for 3 layers"),
    ("longformer", {"attention_window": 5}, "attention_window should be positive and even, got 5"),
    ("longformer", {"max_position_embeddings": 2}, "max_position_embeddings = 2 has no row behind pad_token_id = 1"),
    ("longformer", {"onnx_export": "no"}, "onnx_export should be bool"),
    ("longformer", {"global_attention_positions": [-1]}, "global_tokens: expected positions >= 0"),
    ("big_bird", {"attention_type": "sparse"}, "attention_type = 'sparse' is not supported.*block_sparse"),
    ("big_bird", {"block_size": 0}, "block_size should be positive, got 0"),
    ("big_bird", {"is_decoder": True}, "is_decoder = True is not supported"),
    ("big_bird", {"architectures": ["BigBirdForCausalLM"]}, "BigBirdForMaskedLM"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD, ids=[f"{b[0]}-{next(iter(b[1]))}" for b in BAD])
def test_settings_that_cannot_be_served(name, changes, message):
    settings = json.loads((DATA / name / "config.json").read_text()) | changes
    with pytest.raises(ConfigError, match=message) as caught:
        c = Config(settings)
        family_of(c).read(c)
    assert "\n" not in str(caught.value)
