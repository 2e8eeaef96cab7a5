"""Multi-head latent attention against float64 numpy that loops over heads and tokens, and against transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.config import make
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.mla import Mla
from jaxlm.model import decoder
from jaxlm.model.describe import forward_flops
from tests.tiny import caller, close, draw_params, params_of, stream, tiny, tokens_of

BATCH, LENGTH, WIDTH = 2, 7, 16
X = np.random.default_rng(0).standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
POSITIONS = np.asarray([[0, 1, 2, 3, 4, 5, 6], [3, 4, 9, 10, 20, 21, 50]], np.int32)
ROTARY = {"name": "rotary", "args": {"base": 300.0, "pairing": "interleaved"}}
SIZES = {"heads": 3, "kv_rank": 6, "nope_dim": 5, "rope_dim": 4, "value_dim": 7}
OPTIONS = [{}, {"q_rank": 8}, {"q_rank": 8, "bias": True, "scale": 0.9}]


def rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """Channels 2m and 2m + 1 as one complex number."""
    z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * 300.0 ** (-np.arange(0, len(x), 2) / len(x)))
    return np.stack((z.real, z.imag), -1).reshape(-1)


def oracle(mla: Mla, p) -> np.ndarray:
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    n, rank, y = mla.nope_dim, mla.kv_rank, np.zeros(X.shape)
    for b in range(BATCH):
        latents, rotary, queries = [], [], []
        for x, position in zip(X[b].astype(np.float64), POSITIONS[b], strict=True):
            down = x @ p["kv_down"] + p.get("kv_down_bias", 0.0)
            latents.append(rms(down[:rank], p["kv_norm"]["scale"]))
            rotary.append(turned(down[rank:], position))
            source = rms(x @ p["q_down"] + p.get("q_down_bias", 0.0), p["q_norm"]["scale"]) if mla.q_rank else x
            queries.append(np.einsum("d,dhk->hk", source, p["q_up"]))
        for t in range(LENGTH):
            for h in range(mla.heads):
                logits, values = [], []
                for c, k_turned in zip(latents[: t + 1], rotary[: t + 1], strict=True):
                    made, q = c @ p["kv_up"][:, h], queries[t][h]
                    score = q[:n] @ made[:n] + turned(q[n:], POSITIONS[b, t]) @ k_turned
                    logits.append(score * (mla.scale or (n + mla.rope_dim) ** -0.5))
                    values.append(made[n:])
                weights = np.exp(logits)
                y[b, t] += weights @ np.asarray(values) / weights.sum() @ p["out"][h]
    return y + p.get("out_bias", 0.0)


@pytest.mark.parametrize("options", OPTIONS, ids=len)
@pytest.mark.parametrize("absorbed", [False, True], ids=["made", "absorbed"])
def test_equals_a_loop_in_both_forms(options, absorbed, monkeypatch):
    """Values, and that the two forms have the same gradients."""
    mla = Mla(**SIZES, position=ROTARY, **options)
    p = draw_params(mla.params(Dims(width=WIDTH)))
    ctx = Context(positions=jnp.asarray(POSITIONS))
    gradient = lambda: jax.jit(jax.grad(lambda p, x: jnp.sin(mla(p, x, ctx)[0]).sum(), argnums=(0, 1)))(p, X)
    plain = gradient()
    monkeypatch.setattr(Mla, "_absorbed_is_cheaper", lambda *_: absorbed)
    close(jax.jit(lambda p, x: mla(p, x, ctx)[0])(p, X), oracle(mla, p), 2e-6)
    close(gradient(), plain, 5e-6)


def test_the_cache_holds_the_latent_and_one_rotary_key():
    """And single steps make no key or value of any head: nothing of the cache's length is as wide as the heads."""
    mla = Mla(**SIZES, position=ROTARY)
    state = mla.init_state(Dims(width=WIDTH), 2, 40, jnp.float32, make("cache", "full"))
    assert state.k.shape == (2, 1, 40, 4) and state.v.shape == (2, 1, 40, 6)
    p = draw_params(mla.params(Dims(width=WIDTH)))
    step = lambda x, state: mla(p, x, Context(positions=jnp.zeros((1, 1), jnp.int32)), state)[0]
    shapes = [v.aval.shape for eqn in jax.make_jaxpr(step)(X[:, :1], state).eqns for v in eqn.outvars]
    made = 40 * SIZES["heads"] * (SIZES["nope_dim"] + SIZES["value_dim"])
    assert max(int(np.prod(shape[1:])) for shape in shapes) < made
    # A long first piece does make them, since each serves many queries.
    assert mla._absorbed_is_cheaper(1, 40) and not mla._absorbed_is_cheaper(40, 40)


def test_both_forms_meet_in_one_stream():
    spec = tiny(block={"mixer": Mla(**SIZES, position=ROTARY), "ffn": None})
    tokens, p = tokens_of(2, 12), params_of(spec)

    call = caller(spec)
    full = call(p, tokens)[0]
    close(stream(spec, call, decoder.unstack(p), tokens, (9, 1, 2)), full)


def test_flops_count_keys_of_both_parts():
    spec = lambda length: forward_flops(tiny(block={"mixer": Mla(**SIZES), "ffn": None}, repeats=1), length)
    assert spec(101) - spec(1) == 2 * 3 * (5 + 4 + 7) * (102 / 2 - 1)


@pytest.mark.parametrize(
    "args, words",
    [
        ({"heads": 0}, ["Mla.heads", "0"]),
        ({"kv_rank": 0}, ["Mla.kv_rank"]),
        ({"q_rank": -1}, ["Mla.q_rank", "-1"]),
        ({"implementation": "flash"}, ["Mla.implementation", "reference"]),
        ({"kv_rnak": 4}, ["did you mean 'kv_rank'"]),
    ],
)
def test_what_cannot_work_is_named(args, words):
    with pytest.raises(ConfigError) as caught:
        make("mixer", {"name": "mla", "args": args})
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


@pytest.mark.torch
@pytest.mark.parametrize("options", OPTIONS, ids=len)
def test_equals_transformers(options):
    import torch
    from transformers.models.deepseek_v3 import configuration_deepseek_v3, modeling_deepseek_v3

    options = {name: value for name, value in options.items() if name != "scale"}
    mla = Mla(**SIZES, position=ROTARY, **options)
    p = jax.tree.map(np.asarray, draw_params(mla.params(Dims(width=WIDTH))))
    config = configuration_deepseek_v3.DeepseekV3Config(
        hidden_size=WIDTH,
        num_attention_heads=mla.heads,
        num_key_value_heads=mla.heads,
        q_lora_rank=mla.q_rank or None,
        kv_lora_rank=mla.kv_rank,
        qk_nope_head_dim=mla.nope_dim,
        qk_rope_head_dim=mla.rope_dim,
        v_head_dim=mla.value_dim,
        attention_bias=mla.bias,
        rope_interleave=True,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        attn_implementation="eager",
    )
    module = modeling_deepseek_v3.DeepseekV3Attention(config, 0).eval()
    flat = lambda name: p[name].reshape(p[name].shape[0], -1).T
    state = {
        "kv_a_proj_with_mqa.weight": flat("kv_down"),
        "kv_a_layernorm.weight": p["kv_norm"]["scale"],
        "kv_b_proj.weight": flat("kv_up"),
        "o_proj.weight": p["out"].reshape(-1, WIDTH).T,
        **({"q_a_proj.weight": flat("q_down"), "q_a_layernorm.weight": p["q_norm"]["scale"]} if mla.q_rank else {}),
        ("q_b_proj.weight" if mla.q_rank else "q_proj.weight"): flat("q_up"),
    }
    if mla.bias:
        names = {"kv_a_proj_with_mqa": "kv_down", "o_proj": "out", "q_a_proj": "q_down"}
        state |= {f"{theirs}.bias": p[f"{ours}_bias"] for theirs, ours in names.items()}
    module.load_state_dict({name: torch.tensor(np.ascontiguousarray(a)) for name, a in state.items()}, strict=True)
    rotary = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)
    with torch.no_grad():
        x = torch.tensor(X)
        future = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
        expected = module(x, rotary(x, torch.tensor(POSITIONS)), future)[0].numpy()
    ctx = Context(positions=jnp.asarray(POSITIONS))
    close(jax.jit(lambda p, x: mla(p, x, ctx)[0])(p, X), expected, 3e-6)
