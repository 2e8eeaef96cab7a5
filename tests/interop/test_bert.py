"""BERT and its kin beyond what is recorded: poolers, old names, fresh models in transformers, settings refused."""

from __future__ import annotations

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.mask import Bidirectional, Window
from jaxlm.core.errors import ConfigError
from jaxlm.interop.config import Config
from jaxlm.interop.family import canonical
from jaxlm.interop.load import family_of
from jaxlm.interop.tensors import open_folder
from jaxlm.model import decoder
from jaxlm.model.spec import Block, Group
from tests.interop.test_families import DATA, TOLERANCE, loaded, recorded, same_tensors
from tests.tiny import close, tiny


def rewritten(source, folder, rename=lambda name: name, more=None):
    """A copy of a checkpoint folder whose tensors have other names, and some beside."""
    numpy = pytest.importorskip("safetensors.numpy")
    shutil.copytree(source, folder)
    stored = open_folder(source)
    tensors = {rename(name): np.array(stored.read(name)) for name in stored}
    numpy.save_file({**tensors, **(more or {})}, folder / "model.safetensors")
    return folder


def layer(name: str, width: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).standard_normal
    kernel = draw((width, width)).astype(np.float32) / 5
    return {f"{name}.weight": kernel, f"{name}.bias": draw(width).astype(np.float32)}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_pooler_is_kept_where_it_is_stored(kind, tmp_path):
    more = layer(f"{kind}.pooler.dense")
    folder = rewritten(DATA / kind, tmp_path / "in", more=more)
    model, params = jaxlm.load_hf(folder)
    assert model.spec.pooler and not loaded(kind)[0].spec.pooler
    out = model.apply({"params": params}, recorded(kind)["input_ids"])
    np.testing.assert_allclose(out.logits, recorded(kind)["logits"], rtol=0, atol=TOLERANCE)
    first = np.asarray(out.hidden)[:, 0]
    close(out.pooled, np.tanh(first @ more[f"{kind}.pooler.dense.weight"].T + more[f"{kind}.pooler.dense.bias"]))
    for name, own in (("as imported", model), ("alone", jaxlm.LanguageModel(model.spec))):
        jaxlm.save_hf(own, params, tmp_path / name, family=kind)
        same_tensors(folder, tmp_path / name)


def test_names_of_the_first_conversions(tmp_path):
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    folder = rewritten(DATA / "bert", tmp_path / "old", old, more=layer("cls.seq_relationship"))
    assert any(name.endswith("gamma") for name in open_folder(folder))
    with pytest.warns(UserWarning, match=r"buffers left out: cls\.seq_relationship"):
        _, params = jaxlm.load_hf(folder)
    close(params, loaded("bert")[1], 0)


def test_layers_of_modernbert():
    """Every third layer sees all; only the first takes its attention's input unnormed; each kind has its base."""
    blocks = canonical(loaded("modernbert")[0].spec)
    near = Window(3, ahead=2)
    assert [block.mixer.mask for block in blocks] == [Bidirectional(), near, near, Bidirectional(), near]
    assert [block.placement for block in blocks] == ["pre_ffn"] + ["pre"] * 4
    assert [block.mixer.position.base for block in blocks] == [160_000.0, 10_000.0, 10_000.0, 160_000.0, 10_000.0]


def test_placement_before_the_feed_forward_alone():
    block = Block(mixer=jaxlm.Attention(heads=2), ffn="glu", placement="pre_ffn")
    spec = tiny(layers=(Group((block,), 1),), norm=None)
    params = jaxlm.init(jaxlm.LanguageModel(spec), jax.random.key(0))
    own = params["group_0"]["block_0"]
    assert set(own) == {"mixer", "ffn", "ffn_norm"}
    p = jax.tree.map(lambda x: x[0], own)
    x = jax.random.normal(jax.random.key(1), (1, 5, spec.width))
    found = decoder.forward(spec, params, inputs_embeds=x, logits=False).hidden
    ctx = jaxlm.core.types.Context(positions=jnp.arange(5)[None], ordered=True, slots=True)
    after = x + block.mixer(p["mixer"], x, ctx)[0]
    close(found, after + block.ffn(p["ffn"], block.norm(p["ffn_norm"], after), ctx)[0])


BAD = [
    ("bert", {"is_decoder": True}, "is_decoder = True is not supported"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention = True is not supported"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
    ("bert", {"hidden_act": "gelo"}, "'gelo'.*did you mean 'gelu'"),
    ("bert", {"architectures": ["BertModel"]}, "BertModel.*BertForMaskedLM"),
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings = 2 has no row behind pad_token_id = 1"),
    ("roberta", {"is_decoder": True}, "is_decoder = True is not supported"),
    ("distilbert", {"activation": "gelo"}, "'gelo'.*did you mean 'gelu'"),
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 5 layers"),
    ("modernbert", {"layer_types": ["full"] * 5}, r"layer_types\[0\] = 'full' is not supported; allowed: full_att"),
    ("modernbert", {"local_attention": 0}, "local_attention should be positive, got 0"),
    ("modernbert", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has rope_theta; allowed: settings for"),
    ("modernbert", {"rope_parameters": {"full_attention": {"warp": 2}}}, "rope_parameters has warp = 2, which is not"),
    ("modernbert", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling = .* is not supported"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD, ids=[f"{b[0]}-{next(iter(b[1]))}" for b in BAD])
def test_settings_that_cannot_be_served(name, changes, message):
    settings = json.loads((DATA / name / "config.json").read_text()) | changes
    with pytest.raises(ConfigError, match=message) as caught:
        c = Config(settings)
        family_of(c).read(c)
    assert "\n" not in str(caught.value)


SMALL = {"vocab_size": 50, "num_attention_heads": 4, "num_hidden_layers": 4, "pad_token_id": 0}
WIDTHS = {"hidden_size": 32, "intermediate_size": 40}
FRESH = {
    "bert untied": ("Bert", {**SMALL, **WIDTHS, "tie_word_embeddings": False}, {}),
    "roberta gelu_new": ("Roberta", {**SMALL, **WIDTHS, "hidden_act": "gelu_new"}, {}),
    "distilbert": ("DistilBert", {**SMALL, "dim": 32, "hidden_dim": 40}, {}),
    "modernbert as released": ("ModernBert", {**SMALL, **WIDTHS, "bos_token_id": 1, "eos_token_id": 2}, {}),
    "modernbert yarn": (
        "ModernBert",
        {
            **SMALL, **WIDTHS, "local_attention": 20, "bos_token_id": 1, "eos_token_id": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "factor": 4.0, "rope_theta": 900.0, "original_max_position_embeddings": 32,
                },
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 90.0},
            },
        },
        {},
    ),
    "modernbert in the keys of transformers 4": (
        "ModernBert",
        {**SMALL, **WIDTHS, "local_attention": 12, "bos_token_id": 1, "eos_token_id": 2},
        {"global_rope_theta": 700.0, "local_rope_theta": 70.0, "global_attn_every_n_layers": 2},
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", FRESH)
def test_fresh_models_in_transformers(name, tmp_path):
    """Random models at length 150, padded: the logits of transformers, and again of what is exported."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind, settings, old = FRESH[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**settings, **old)
    config.initializer_range = 0.2
    theirs = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    for path, p in theirs.named_parameters():
        if path.endswith("bias"):
            p.data.normal_(std=0.2)
    if hasattr(theirs, "cls"):  # the decoder's own is what an untied model uses
        theirs.cls.predictions.bias.data.copy_(theirs.cls.predictions.decoder.bias.data)
    theirs.save_pretrained(tmp_path / "in")
    if old:  # as a file of then has it
        path = tmp_path / "in" / "config.json"
        written = json.loads(path.read_text())
        path.write_text(
            json.dumps({k: v for k, v in written.items() if k not in ("rope_parameters", "layer_types")} | old)
        )
    model, params = jaxlm.load_hf(tmp_path / "in")
    tokens = np.random.default_rng(0).integers(3, 50, (2, 150))
    mask = (np.arange(150) < [[150], [97]]).astype(np.int32)
    inputs = {"input_ids": np.where(mask, tokens, config.pad_token_id), "attention_mask": mask}
    inputs = {key: torch.from_numpy(x).long() for key, x in inputs.items()}
    found = jax.jit(lambda p, x: model.apply({"params": p}, x, segment_ids=mask).logits)(params, tokens)

    def check(module) -> None:
        with torch.no_grad():
            wanted = module.eval()(**inputs).logits.numpy()
        assert wanted.std() > 0.2
        np.testing.assert_allclose(np.asarray(found)[mask != 0], wanted[mask != 0], rtol=0, atol=TOLERANCE)

    check(theirs)
    jaxlm.save_hf(jaxlm.LanguageModel(model.spec), params, tmp_path / "out", family=config.model_type)
    again, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    check(again)
