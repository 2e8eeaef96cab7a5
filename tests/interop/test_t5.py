"""T5, T5 1.1 and ByT5: recorded logits and greedy answers, both ways through a folder, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.core.config import replace_at
from jaxlm.core.errors import ConfigError
from jaxlm.interop.config import Config
from jaxlm.interop.families.t5 import FAMILY
from jaxlm.interop.family import different
from jaxlm.interop.tensors import open_folder
from jaxlm.model.delete_gate import DeleteGate
from tests.interop.pair_cases import FOLDER, PAIRS, build, observe

TOLERANCE = 1e-4
every = pytest.mark.parametrize("name", PAIRS)


@functools.cache
def loaded(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no setting unread, no tensor left over
        return jaxlm.load_hf(FOLDER / name)


def recorded(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / name / "expected.npz"))


def logits_of(model, params, expected: dict[str, np.ndarray]) -> np.ndarray:
    """Of the recorded targets, and of start token and greedy answer, in one call."""
    rows = np.concatenate([expected["decoder_input_ids"], np.full((2, 1), model.spec.start), expected["greedy"]], 1)
    size = expected["decoder_input_ids"].shape[1]
    segments = np.broadcast_to((np.arange(rows.shape[1]) >= size) + 1, rows.shape)
    source, mask = expected["input_ids"], expected["attention_mask"]
    sources = np.concatenate([source, source], 1)
    both = np.concatenate([mask, 2 * mask], 1)  # the same source for either target
    call = jax.jit(
        lambda p, *xs: model.apply({"params": p}, xs[0], xs[1], source_segments=xs[2], segment_ids=xs[3]).logits
    )
    return np.asarray(call(params, sources, rows, both, segments))


@every
def test_logits_and_greedy_answers(name):
    (model, params), expected = loaded(name), recorded(name)
    logits, size = logits_of(model, params, expected), expected["decoder_input_ids"].shape[1]
    np.testing.assert_allclose(logits[:, :size], expected["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(logits[:, size:-1].argmax(-1), expected["greedy"])


@pytest.mark.parametrize("name", ["byt5", *(pytest.param(n, marks=pytest.mark.slow) for n in PAIRS if n != "byt5")])
def test_generate(name):
    (model, params), expected = loaded(name), recorded(name)
    lengths = expected["attention_mask"].sum(1)
    new = jaxlm.generate(model, params, expected["input_ids"], expected["greedy"].shape[1], prompt_lengths=lengths)
    np.testing.assert_array_equal(new, expected["greedy"])


def same_tensors(one, two) -> None:
    a, b = open_folder(one), open_folder(two)
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a.read(name), b.read(name), err_msg=name)


@every
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
    model, params = loaded(name)
    jaxlm.save_hf(model, params, tmp_path / "out")
    same_tensors(FOLDER / name, tmp_path / "out")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (FOLDER / name, tmp_path / "out"))
    assert {key: after[key] for key in before} == before
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "out" / "README.md").read_text()
    alone = jaxlm.EncoderDecoder(model.spec)  # of no folder: the settings are written anew
    jaxlm.save_hf(alone, params, tmp_path / "alone", dtype="bfloat16")
    again, values = jaxlm.load_hf(tmp_path / "alone")
    assert not different(again.spec, model.spec)
    assert {str(x.dtype) for x in jax.tree.leaves(values)} == {"bfloat16"} == {again.spec.decoder.dtype}


def test_a_head_of_its_own(tmp_path):
    """As transformers 4 wrote it, ``tie_word_embeddings`` false; and as 5 does: the logits are not scaled."""
    model, params = loaded("byt5")
    kernel = np.random.default_rng(0).standard_normal(params["decoder"]["embed"]["table"].T.shape).astype(np.float32)
    untied = {**params, "decoder": {**params["decoder"], "head": {"kernel": kernel}}}
    spec = dataclasses.replace(model.spec, decoder=dataclasses.replace(model.spec.decoder, tied_head=False))
    jaxlm.save_hf(jaxlm.EncoderDecoder(spec), untied, tmp_path / "own")
    settings = json.loads((tmp_path / "own" / "config.json").read_text())
    assert settings["tie_word_embeddings"] is False
    spellings = ({"tie_word_embeddings": False}, {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    for more in spellings:
        plain = {key: value for key, value in settings.items() if key != "scale_decoder_outputs"}
        (tmp_path / "own" / "config.json").write_text(json.dumps({**plain, **more}))
        again, values = jaxlm.load_hf(tmp_path / "own")
        assert not different(again.spec, spec)
        np.testing.assert_array_equal(values["decoder"]["head"]["kernel"], kernel)


def test_a_checkpoint_of_ours(tmp_path):
    from jaxlm.train.load import save_checkpoint

    model, params = loaded("t5")
    save_checkpoint(model, params, tmp_path / "run")
    again, values = jaxlm.load_checkpoint(tmp_path / "run")
    assert again.spec == model.spec and isinstance(again, jaxlm.EncoderDecoder)
    jax.tree.map(np.testing.assert_array_equal, values, params)


@pytest.mark.parametrize(
    "path, value",
    [
        ("encoder.width", 8),
        ("encoder.norm.eps", 0.1),
        ("decoder.embed_multiplier", 2.0),
        ("decoder.logit_soft_cap", 3.0),
        ("share_embedding", False),
        ("gate", DeleteGate(layer=1)),
    ],
)
def test_a_model_that_t5_cannot_say_is_refused(path, value):
    spec = loaded("t5")[0].spec
    with pytest.raises(ConfigError) as caught:
        FAMILY.write(replace_at(spec, path, value))
    assert "\n" not in str(caught.value)


def test_decoders_and_pairs_are_told_apart(tmp_path):
    model, params = loaded("t5")
    with pytest.raises(ConfigError, match="t5 cannot express this model: it has an encoder and a decoder"):
        FAMILY.write(jaxlm.ModelSpec())
    with pytest.raises(ConfigError, match="for decoders alone") as caught:
        jaxlm.save_hf(model, params, tmp_path / "out", family="llama")
    assert "\n" not in str(caught.value)


def test_what_is_for_decoders_alone(tmp_path):
    from experiments import checkpoints
    from jaxlm.decode.token_model import FullPass
    from jaxlm.train.load import save_checkpoint

    model, params = loaded("byt5")
    save_checkpoint(model, params, tmp_path / "run")
    for folder in (FOLDER / "byt5", tmp_path / "run"):
        with pytest.raises(ConfigError, match="is an encoder-decoder checkpoint, asked for what a decoder") as caught:
            checkpoints.load(folder)
        assert "\n" not in str(caught.value)
    for ask in (
        lambda: jaxlm.extend(model, "yarn", factor=2.0, original=8),
        lambda: jaxlm.replace(model, {"mixer.heads": 2}),
        lambda: FullPass(model, params),
    ):
        with pytest.raises(ConfigError, match="this is for decoders alone") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("feed_forward_proj", "gated-tanhh", "feed_forward_proj = 'gated-tanhh' is not supported"),
        ("decoder_start_token_id", 61, "start: 61 is outside the vocabulary"),
        ("num_heads", 0, "expected heads > 0"),
        ("num_decoder_layers", 0, "num_decoder_layers should be positive"),
        ("relative_attention_num_buckets", 2, "buckets: expected at least 4"),
        ("architectures", ["T5EncoderModel"], "architecture of a t5 checkpoint"),
    ],
)
def test_settings_that_cannot_work(key, value, message, tmp_path):
    shutil.copytree(FOLDER / "t5", tmp_path / "bad")
    settings = json.loads((tmp_path / "bad" / "config.json").read_text())
    (tmp_path / "bad" / "config.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(ConfigError, match=message) as caught:
        jaxlm.load_hf(tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_configuration_alone():
    for name in PAIRS:
        spec = loaded(name)[0].spec
        written = FAMILY.write(spec)
        assert json.loads(json.dumps(written)) == written and not different(FAMILY.read(Config(written)), spec)


@pytest.mark.torch
@every
def test_transformers_reads_what_we_write(name, tmp_path):
    """With fresh weights of another seed: ours and theirs agree, theirs loads our folder without a tensor amiss."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    build(name, 7).save_pretrained(tmp_path / "in")
    expected, _ = observe(build(name, 7), 7)
    model, params = jaxlm.load_hf(tmp_path / "in")
    size = expected["decoder_input_ids"].shape[1]
    np.testing.assert_allclose(logits_of(model, params, expected)[:, :size], expected["logits"], rtol=0, atol=TOLERANCE)
    jaxlm.save_hf(jaxlm.EncoderDecoder(model.spec), params, tmp_path / "out")
    kind = transformers.T5ForConditionalGeneration
    theirs, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    inputs = {key: torch.from_numpy(expected[key]) for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        logits = theirs.float().eval()(**inputs, use_cache=False).logits
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=0, atol=TOLERANCE)
