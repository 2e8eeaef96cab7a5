"""Every registered family, on tiny checkpoints that transformers wrote (`tests/interop/data`, see `record.py`)."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError
from jaxlm.dist import Mesh, make_mesh, param_shardings, use_mesh
from jaxlm.interop import load
from jaxlm.interop.config import Config
from jaxlm.interop.family import Family, different, group
from jaxlm.interop.load import family_of
from jaxlm.interop.tensors import open_folder
from jaxlm.mixer.recurrent import Recurrent
from jaxlm.model import decoder
from jaxlm.model.spec import mixers_of
from tests.interop.architectures import CASES, generates
from tests.interop.pair_cases import PAIRS
from tests.tiny import caller, close, mostly_slow, stream

DATA = Path(__file__).resolve().parent / "data"
TOLERANCE = 1e-4

every = pytest.mark.parametrize("name", sorted(CASES))
generating = pytest.mark.parametrize("name", sorted(name for name in CASES if generates(name)))


@functools.cache
def loaded(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no setting unread, no tensor left over
        return jaxlm.load_hf(DATA / name)


def recorded(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / name / "expected.npz"))


def family(name: str) -> Family:
    return family_of(Config.from_folder(DATA / name))


def same_tensors(one: Path, two: Path) -> None:
    """Tensor for tensor, bit for bit."""
    a, b = open_folder(one), open_folder(two)
    assert set(a) == set(b)
    for name in a:
        x, y = a.read(name), b.read(name)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8), err_msg=name)


def test_every_family_has_a_case():
    cases = {*CASES, *PAIRS}
    kinds = {json.loads((DATA / name / "config.json").read_text())["model_type"] for name in cases}
    assert kinds == set(registry.methods("family"))
    assert {path.name for path in DATA.iterdir()} == cases


@pytest.mark.parametrize("kind", sorted(registry.methods("family")))
def test_a_family_is_named_and_cited(kind):
    found = registry.get("family", kind)
    assert isinstance(found, Family) and found.model_type == kind and found.paper and found.architectures


@pytest.mark.parametrize("name", sorted(name for name in CASES if not generates(name)))
def test_logits_of_encoders(name):
    (model, params), expected = loaded(name), recorded(name)
    logits = jax.jit(lambda p, tokens: model.apply({"params": p}, tokens).logits)(params, expected["input_ids"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=TOLERANCE)


@generating
def test_logits_and_greedy_continuation(name):
    """One full pass over prompt and continuation: the recorded logits, and every next token the likeliest."""
    (model, params), expected = loaded(name), recorded(name)
    prompt, greedy = expected["input_ids"], expected["greedy"]
    size = prompt.shape[1]
    call = jax.jit(lambda p, tokens, length: model.apply({"params": p}, tokens, length=length).logits)
    rows = np.concatenate((prompt, greedy[:, :-1]), 1)
    logits = np.asarray(call(params, rows, size))
    np.testing.assert_allclose(logits[:, :size], expected["logits"], rtol=0, atol=TOLERANCE)
    for step in range(greedy.shape[1]):
        # The length is what scalings by length go by; the others do not look at it.
        by_length = any(encoding.by_length for encoding, _ in decoder.position_encodings(model.spec).values())
        now = np.asarray(call(params, rows, size + step)) if by_length else logits
        np.testing.assert_array_equal(now[:, size + step - 1].argmax(-1), greedy[:, step], err_msg=f"step {step}")


@pytest.mark.slow
@generating
def test_generate(name):
    (model, params), expected = loaded(name), recorded(name)
    if any(encoding.by_length for encoding, _ in decoder.position_encodings(model.spec).values()):
        pytest.skip("frequencies change with the length: a cache may change tokens")
    prompt, greedy = expected["input_ids"], expected["greedy"]
    np.testing.assert_array_equal(jaxlm.generate(model, params, prompt, max_new_tokens=greedy.shape[1]), greedy)


def recurs(name: str) -> bool:
    """Whether the model has a state beside keys and values."""
    blocks = [block for g in family(name).read(Config.from_folder(DATA / name)).layers for block in g.pattern]
    return any(isinstance(mixer, Recurrent) for block in blocks for mixer in mixers_of(block.mixer))


PIECES = "bamba_biases", "falcon_mamba_biases", "jamba_dense", "mamba2", "recurrent_gemma_biases", "rwkv_rescaled"


@pytest.mark.parametrize("name", mostly_slow(sorted(name for name in CASES if recurs(name)), *PIECES))
def test_recurrent_models_in_pieces(name):
    """Pieces of several tokens, then single steps, are the full pass, whose logits transformers recorded.

    The full pass is the reference because transformers' own caches are none (5.23): its Mamba begins again from zero
    when several tokens follow a cache, its RecurrentGemma does so with the convolution, its single steps of Mamba-2
    forget the least and greatest step (Mamba-2, Bamba, Nemotron-H, Falcon-H1), and its RWKV cannot keep states of
    another width than the model's.
    """
    (model, params), expected = loaded(name), recorded(name)
    rows = np.concatenate((expected["input_ids"], expected["greedy"]), 1)
    size = expected["input_ids"].shape[1]
    call = caller(model.spec)
    pieces = stream(model.spec, call, params, rows, (7, 2, size - 9, *(1,) * expected["greedy"].shape[1]))
    np.testing.assert_allclose(pieces[:, :size], expected["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(pieces[:, size - 1 : -1].argmax(-1), expected["greedy"])


@every
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
    model, params = loaded(name)
    jaxlm.save_hf(model, params, tmp_path / "out")
    same_tensors(DATA / name, tmp_path / "out")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (DATA / name, tmp_path / "out"))
    assert {key: after[key] for key in before} == before


@every
def test_configuration_from_the_model_alone(name):
    """What `write` makes of the model reads back as the same model (transformers' view: test_transformers)."""
    model, kind = loaded(name)[0], family(name)
    written = kind.write(model.spec)
    assert json.loads(json.dumps(written)) == written
    assert not different(kind.read(Config(written)), model.spec)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gpt_oss", "gemma2"])
def test_a_change_of_the_model_is_written_or_refused(name):
    """Never silently lost: each field of the model is flipped, and `write` says so or reads back the change."""
    model, kind = loaded(name)[0], family(name)
    spec = model.spec
    changes = [
        {"embed_multiplier": 2.5}, {"logit_multiplier": 0.3}, {"logit_soft_cap": 7.0}, {"residual_multiplier": 0.4},
        {"embed_width": 8}, {"tied_head": not spec.tied_head}, {"head_bias": not spec.head_bias}, {"norm": None},
    ]  # fmt: skip
    blocks = [block for g in spec.layers for _ in range(g.repeats) for block in g.pattern]
    for field in ("heads", "soft_cap", "qkv_bias", "qkv_clip", "sinks", "mask", "scale"):
        value = {"heads": 2, "soft_cap": 3.0, "qkv_clip": 0.9, "mask": "bidirectional", "scale": 0.11}.get(field)
        mixer = blocks[-1].mixer
        new = dataclasses.replace(mixer, **{field: not getattr(mixer, field) if value is None else value})
        changes.append({"layers": group([*blocks[:-1], dataclasses.replace(blocks[-1], mixer=new)])})
    refused = 0
    for change in changes:
        try:
            changed = dataclasses.replace(spec, **change)
            written = kind.write(changed)
        except ConfigError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert not different(kind.read(Config(written)), changed), change
    assert refused


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, tmp_path):
    """Kept as stored, or converted; round trips are exact."""
    model, params = loaded("qwen3")
    jaxlm.save_hf(model, params, tmp_path / "half", dtype=dtype)
    half, values = jaxlm.load_hf(tmp_path / "half")
    assert half.spec.dtype == dtype and {str(x.dtype) for x in jax.tree.leaves(values)} == {dtype}
    jaxlm.save_hf(half, values, tmp_path / "again")
    same_tensors(tmp_path / "half", tmp_path / "again")
    wide, values = jaxlm.load_hf(tmp_path / "half", dtype="float32")
    assert wide.spec.dtype == "float32"
    close(values, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params), 1e-7)
    out = jax.jit(lambda p, tokens: half.apply({"params": p}, tokens).logits)(
        jax.tree.map(lambda x: x.astype(dtype), params), recorded("qwen3")["input_ids"]
    )
    assert out.dtype == jnp.float32 and np.abs(np.asarray(out) - recorded("qwen3")["logits"]).mean() < 0.1


def test_shards(tmp_path):
    model, params = loaded("mixtral")
    jaxlm.save_hf(model, params, tmp_path / "out", shard_size=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    same_tensors(DATA / "mixtral", tmp_path / "out")
    close(jaxlm.load_hf(tmp_path / "out")[1], params, 0)


@pytest.mark.parametrize("chunk", [1, load.CHUNK])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_onto_a_mesh(name, chunk, monkeypatch):
    """The same values, each array placed by the axis rules, whatever the size of the pieces."""
    monkeypatch.setattr(load, "CHUNK", chunk)
    mesh = make_mesh(Mesh(data=1, fsdp=4, tensor=2))
    model, params = jaxlm.load_hf(DATA / name, mesh=mesh)
    close(params, loaded(name)[1], 0)
    places = param_shardings(mesh, decoder.param_specs(model.spec))
    assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim), params, places))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_generate_on_a_mesh(name):
    """What was loaded onto eight devices continues as on one."""
    mesh, expected = make_mesh(Mesh(data=2, fsdp=2, tensor=2)), recorded(name)
    model, params = jaxlm.load_hf(DATA / name, mesh=mesh)
    with use_mesh(mesh):
        out = jaxlm.generate(model, params, expected["input_ids"], expected["greedy"].shape[1])
    np.testing.assert_array_equal(out, expected["greedy"])


def test_parameters_taken_apart_are_saved_alike(tmp_path):
    model, params = loaded("gemma3")
    jaxlm.save_hf(model, decoder.unstack(params), tmp_path / "out")
    same_tensors(DATA / "gemma3", tmp_path / "out")


def test_files_that_come_along(tmp_path):
    """Tokenizer and generation files go through untouched; code and weights of other formats do not."""
    model, params = loaded("llama")
    jaxlm.save_hf(model, params, tmp_path / "in")
    files = {"tokenizer.json": '{ "a" :1}', "generation_config.json": "{}", "README.md": "# Mine", "x.py": "boom()"}
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(b"pickle")
    jaxlm.save_hf(*jaxlm.load_hf(tmp_path / "in"), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == files["tokenizer.json"]
    assert (tmp_path / "out" / "generation_config.json").read_text() == "{}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card and "# Mine" in card
    assert not (tmp_path / "out" / "x.py").exists() and not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_a_model_of_our_own(tmp_path):
    """Exported as the first family that can say it, and read back as itself."""
    block = jaxlm.Block(mixer=jaxlm.Attention(heads=4, kv_heads=2, position="rotary"), ffn="glu")
    model = jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=50, width=16, layers=(jaxlm.Group((block,), 3),)))
    params = jaxlm.init(model, jax.random.key(0))
    jaxlm.save_hf(model, params, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    again, values = jaxlm.load_hf(tmp_path / "out")
    assert not different(again.spec, model.spec)
    close(values, params, 0)


def test_a_model_that_nobody_can_say(tmp_path):
    block = jaxlm.Block(mixer=jaxlm.Attention(heads=4, position="t5_bias"))
    model = jaxlm.LanguageModel(jaxlm.ModelSpec(vocab_size=50, width=16, layers=(jaxlm.Group((block,), 1),)))
    with pytest.raises(ConfigError, match="no Hugging Face family can express this model") as caught:
        jaxlm.save_hf(model, jaxlm.init(model, jax.random.key(0)), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_groups_have_the_fewest_blocks():
    a, b, c = jaxlm.Block(), jaxlm.Block(ffn="glu"), jaxlm.Block(ffn=None)
    shapes = lambda blocks: [(len(g.pattern), g.repeats) for g in group(blocks)]
    assert shapes([a] * 5) == [(1, 5)]
    assert shapes([a, a, b] * 2 + [a]) == [(3, 2), (1, 1)]
    assert shapes([a, b, b, b]) == [(1, 1), (1, 3)]
    assert shapes([a, b, c]) == [(3, 1)]
    assert shapes([a] + [b, b, c] * 7) == [(1, 1), (3, 7)]  # ModernBERT-base
    assert shapes([a] * 3 + [b] * 58) == [(1, 3), (1, 58)]  # dense layers before experts
    for blocks in ([a, a, b] * 2 + [a], [a] + [b, b, c] * 7, [c, a, c, a, b, b, b, c]):
        assert [block for g in group(blocks) for _ in range(g.repeats) for block in g.pattern] == blocks


def in_version_4(settings: dict) -> dict:
    """The same settings as transformers 4 spelled them."""
    old = dict(settings)
    old["torch_dtype"] = old.pop("dtype")
    kind, rope = old["model_type"], old.pop("rope_parameters", None)
    if rope is None:
        return old
    if "full_attention" in rope:
        sliding, rope = rope["sliding_attention"], rope["full_attention"]
        if kind == "gemma3_text":
            old["rope_local_base_freq"] = sliding["rope_theta"]
        elif kind == "modernbert":
            old["local_rope_theta"] = sliding["rope_theta"]
    rope = dict(rope)
    base, share = ("rotary_emb_base", "rotary_pct") if kind == "gpt_neox" else ("rope_theta", "partial_rotary_factor")
    base = "global_rope_theta" if kind == "modernbert" else base
    old[base] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old[share] = rope.pop("partial_rotary_factor")
    rope["type"] = rope.pop("rope_type")
    if rope["type"] != "default":
        old["rope_scaling"] = rope
    return old


@every
def test_the_spelling_of_transformers_4(name):
    settings = json.loads((DATA / name / "config.json").read_text())
    old = Config(in_version_4(settings))
    assert not different(family(name).read(old), loaded(name)[0].spec)
    assert not old.unread()
