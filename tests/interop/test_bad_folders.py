"""Checkpoint folders that cannot be read: each is one line that names the offender; and old ones that can."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError
from jaxlm.interop.tensors import Planned, open_folder, write_folder
from tests.interop.test_families import DATA, loaded
from tests.tiny import close


def copy(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / name, tmp_path / name))


def settings(**changes: Any) -> Callable[[Path], None]:
    """Changes keys of config.json; a value of None removes one."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        data.update(changes)
        data = {key: value for key, value in data.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(data))

    return apply


def rewrite(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    """Changes the tensors."""

    def apply(folder: Path) -> None:
        stored = open_folder(folder)
        tensors = {name: stored.read(name) for name in stored}
        change(tensors)
        planned = {name: Planned(x.shape, str(x.dtype), lambda x=x: x) for name, x in tensors.items()}
        write_folder(folder, planned)

    return apply


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def rope(**parameters: Any) -> Callable[[Path], None]:
    return settings(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, **parameters})


Q = "model.layers.0.self_attn.q_proj.weight"
M = "backbone.layers.0.mixer."
BAD: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("no config", "llama", lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    ("not JSON", "llama", text("config.json", "{model_type: llama"), "config.json is not JSON"),
    ("not an object", "llama", text("config.json", "[1]"), "expected a JSON object, got list"),
    ("unknown family", "llama", settings(model_type="lama"), "unknown model_type.*did you mean 'llama'.*mistral"),
    ("no family", "llama", settings(model_type=None), "model_type"),
    ("other class", "llama", settings(architectures=["LlamaForQuestionAnswering"]), "LlamaForCausalLM"),
    ("missing key", "llama", settings(hidden_size=None), "no hidden_size"),
    ("wrong type", "llama", settings(hidden_size="24"), "hidden_size should be int, got '24'"),
    ("a flag as a number", "llama", settings(num_hidden_layers=True), "num_hidden_layers should be int, got True"),
    ("no layers", "llama", settings(num_hidden_layers=0), "num_hidden_layers should be positive"),
    ("heads", "llama", settings(num_attention_heads=5, num_key_value_heads=5, head_dim=None), "24 is not divisible"),
    ("groups", "llama", settings(num_key_value_heads=3), "config.json: .*divisor of heads 4, got 3"),
    ("activation", "llama", settings(hidden_act="xielu"), "unknown activation in config.json 'xielu'.*silu"),
    ("quantized", "llama", settings(quantization_config={"quant_method": "fp8"}), "quantization_config is not supp"),
    ("rope type", "llama", rope(rope_type="axial"), "rope_type 'axial' is not supported; allowed: default"),
    ("rope key", "llama", rope(mrope_section=[1, 2]), "rope_parameters has mrope_section"),
    ("rope factor", "llama", rope(rope_type="linear"), "rope_type 'linear' needs factor"),
    ("longrope list", "llama", rope(rope_type="longrope", short_factor=[1], long_factor=[1]), "should be a list of 3"),
    ("unsupported", "gemma2", settings(use_bidirectional_attention=True), "use_bidirectional_attention = True is not"),
    ("layer type", "gemma2", settings(layer_types=["linear_attention"] * 3), "layer_types.0. = 'linear_attention'"),
    ("layer count", "gemma2", settings(layer_types=["full_attention"]), "layer_types has 1 entries for 3 layers"),
    ("nested", "mpt", settings(attn_config={"qk_ln": True}), "qk_ln = True is not supported"),
    ("falcon", "falcon_new", settings(parallel_attn=False), "new_decoder_architecture needs parallel_attn"),
    ("period", "gemma3", settings(layer_types=None, sliding_window_pattern=0), "sliding_window_pattern should be pos"),
    ("runs of layers", "gpt_neo", settings(attention_types=[3]), "attention_types should be like"),
    ("kind of layer", "gpt_neo", settings(attention_types=[[["sparse"], 3]]), "'sparse'; allowed: global, local"),
    ("blocks of heads", "codegen", settings(n_head=6), "n_head = 6 is not supported; allowed: multiples of 4"),
    ("clip", "olmo", settings(clip_qkv=-1.0), "qkv_clip: expected a number >= 0, got -1.0"),
    ("alpha", "hunyuan", rope(alpha=5.0), "alpha needs rope_type 'dynamic', got 'yarn'"),
    ("shared experts", "dots1", settings(n_shared_experts=0), "n_shared_experts should be positive, got 0"),
    ("act of a layer", "mamba", settings(hidden_act="relu"), "hidden_act = 'relu' is not supported .*'silu'"),
    ("rank", "mamba", settings(time_step_rank="most"), "rank of time steps should be a number or 'auto', got 'most'"),
    ("state size", "mamba", settings(state_size=7), r"x_proj.weight has shape \[17, 48\].*\[19, 48\]"),
    ("no state", "mamba", settings(state_size=0), "Mamba.state: expected a positive integer, got 0"),
    ("missing A", "mamba", rewrite(lambda t: t.pop(M + "A_log")), f"missing tensors {M}A_log"),
    ("heads of Mamba-2", "mamba2", settings(num_heads=5), "num_heads = 5 heads of head_dim = 8 are not the expand x"),
    ("groups of Mamba-2", "mamba2", settings(n_groups=4), "24 = 48 is not a multiple of 8 x 4 groups"),
    ("state of Mamba-2", "mamba2", settings(state_size=8), r"shape \[\d+, 24\], config.json makes it \[\d+, 24\]"),
    ("step limit", "mamba2", settings(time_step_limit=[0.1]), "time_step_limit should be two numbers, got"),
    ("steps", "mamba2", settings(time_step_limit=[0.5, 0.1]), "step_limit: expected 0 <= low < high"),
    ("fused tensor", "mamba2", rewrite(lambda t: t.pop(M + "in_proj.weight")), f"missing tensors {M}in_proj.weight"),
    ("block types", "recurrent_gemma", settings(block_types=["lstm"]), "block_types has 'lstm'; allowed: recurrent"),
    ("blocks of a gate", "recurrent_gemma", settings(lru_width=30), "RgLru.heads: width 30 is not divisible by 4"),
    ("offset", "jamba", settings(attn_layer_offset=5), "attn_layer_offset should be below attn_layer_period 3, got 5"),
    ("layer indices", "bamba", settings(attn_layer_indices=[7]), "attn_layer_indices has 7; allowed: 0 to 2"),
    (
        "alone", "nemotron_h", settings(layers_block_type=["mlp", "linear_attention"]),
        r"layers_block_type.0. = 'mlp' is not supported: no linear_attention or full_attention",
    ),
    ("kind", "nemotron_h", settings(layers_block_type=["lstm"]), "'lstm' is not supported; allowed: linear_attention"),
    ("latent experts", "nemotron_h", settings(moe_latent_size=8), "moe_latent_size = 8 is not supported"),
    ("offsets", "falcon_h1", settings(projectors_bias=True), "projectors_bias = True is not supported"),
    ("factors", "falcon_h1", settings(ssm_multipliers=[1.0]), "ssm_multipliers should be 5 numbers, got"),
    ("key heads", "qwen3_next", settings(linear_num_key_heads=4), "key_heads: expected a divisor of heads 6, got 4"),
    ("kind of layer", "qwen3_next", settings(layer_types=["sliding_attention"] * 4), "layer_types has 'sliding_att"),
    ("no weights", "llama", lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    ("truncated", "llama", lambda f: (f / "model.safetensors").write_bytes(b"\1" * 40), "truncated or not safetensors"),
    ("missing tensor", "llama", rewrite(lambda t: t.pop(Q)), f"missing tensors {Q}"),
    ("extra tensor", "llama", rewrite(lambda t: t.update(extra=np.zeros(2, np.float32))), "extra belong nowhere"),
    ("shape", "llama", rewrite(lambda t: t.update({Q: t[Q][:-1]})), r"q_proj.weight has shape \[23, 24\].*\[24, 24\]"),
    ("more layers", "llama", settings(num_hidden_layers=4), "missing tensors model.layers.3"),
    ("fewer layers", "llama", settings(num_hidden_layers=2), "model.layers.2.* belong nowhere"),
    ("integers", "llama", rewrite(lambda t: t.update({n: x.astype(np.int8) for n, x in t.items()})), "tensors of int8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_one_line_that_names_the_offender(name, change, message, tmp_path):
    folder = copy(name, tmp_path)
    change(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        jaxlm.load_hf(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700  # room for all families


def test_pickles_are_refused(tmp_path):
    folder = copy("llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickle.*save_pretrained"):
        jaxlm.load_hf(folder)


def test_a_setting_nobody_knows_is_named(tmp_path):
    folder = copy("llama", tmp_path)
    settings(surprise=3)(folder)
    with pytest.warns(UserWarning, match="surprise"):
        jaxlm.load_hf(folder)


def test_buffers_and_copies_of_tied_heads_are_left_out(tmp_path):
    folder = copy("qwen3", tmp_path)
    table = "model.embed_tokens.weight"

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["lm_head.weight"] = tensors[table]

    rewrite(add)(folder)
    with pytest.warns(UserWarning, match="buffers left out: lm_head.weight, .*inv_freq"):
        _, params = jaxlm.load_hf(folder)
    close(params, loaded("qwen3")[1], 0)


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_names_of_the_bare_model(name, tmp_path):
    """Older files lack the prefix of the language model."""
    folder = copy(name, tmp_path)

    def strip(tensors):
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)

    rewrite(strip)(folder)
    close(jaxlm.load_hf(folder)[1], loaded(name)[1], 0)


def test_names_from_tensorflow(tmp_path):
    """gamma and beta of the first GPT-2 files, and their causal masks."""
    folder = copy("gpt2", tmp_path)

    def rename(tensors):
        for key in list(tensors):
            if ".ln_" in key:
                old = key.replace(".weight", ".gamma").replace(".bias", ".beta")
                tensors[old] = tensors.pop(key)
        tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
        tensors["transformer.h.0.attn.masked_bias"] = np.ones((), np.float32)

    rewrite(rename)(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        close(jaxlm.load_hf(folder)[1], loaded("gpt2")[1], 0)
    assert any("masked_bias" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("embed"), "parameter embed/table is missing"),
        (lambda p: p.update(more={"x": np.zeros(2)}), "parameter more/x is not one of the model's"),
        (lambda p: p["final_norm"].update(scale=np.zeros(3)), r"final_norm/scale has shape \[3\].*\[24\]"),
    ],
)
def test_parameters_of_another_model(change, message, tmp_path):
    model, params = loaded("llama")
    params = {name: dict(value) for name, value in params.items()}
    change(params)
    with pytest.raises(ConfigError, match=message):
        jaxlm.save_hf(model, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_kept(tmp_path):
    model, params = loaded("llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty.*overwrite"):
        jaxlm.save_hf(model, params, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    jaxlm.save_hf(model, params, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists() and (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="unknown family 'lama'.*llama"):
        jaxlm.save_hf(model, params, tmp_path / "new", family="lama")
