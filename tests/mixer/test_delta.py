"""Delta rules against the layers of transformers, with the same weights; initial values; what they refuse.

The golden files hold Gated DeltaNet with fewer key heads than value heads to a layer of Qwen3-Next.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.params import initialize
from jaxlm.core.types import Context, Dims
from jaxlm.mixer.delta_net import DeltaNet
from jaxlm.mixer.gated_delta_net import GatedDeltaNet
from jaxlm.mixer.gla import Gla
from jaxlm.mixer.kda import Kda
from tests.tiny import close, draw_params

WIDTH, LENGTH = 16, 21
X = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)
CTX = Context(positions=jnp.arange(LENGTH)[None])


def linear(weight) -> np.ndarray:
    """[D, ...] as the weight of a torch.nn.Linear."""
    return np.asarray(weight).reshape(len(weight), -1).T


def shared(p) -> dict[str, np.ndarray]:
    """What layers with separate projections and one convolution over [q, k, v] have in common."""
    q, k = p["qk"][:, :, 0], p["qk"][:, :, 1]
    taps = [p["qk_conv"][:, :, 0], p["qk_conv"][:, :, 1], p["v_conv"]]
    return {
        "q_proj.weight": linear(q),
        "k_proj.weight": linear(k),
        "v_proj.weight": linear(p["v"]),
        "conv1d.weight": np.concatenate([linear(each[::-1]) for each in taps])[:, None],
        "b_proj.weight": linear(p["beta"]),
        "o_norm.weight": p["norm"]["scale"],
        "o_proj.weight": np.asarray(p["out"]).reshape(-1, WIDTH).T,
    }


def kimi_linear(p, mixer):
    from transformers.models.kimi_linear import configuration_kimi_linear, modeling_kimi_linear

    config = configuration_kimi_linear.KimiLinearConfig(
        hidden_size=WIDTH,
        linear_num_heads=mixer.heads,
        linear_head_dim=mixer.key_width,
        linear_conv_kernel_dim=mixer.conv,
        rms_norm_eps=mixer.eps,
    )
    return modeling_kimi_linear.KimiLinearDeltaAttention(config, 0), {
        **shared(p),
        "forget_gate.f_a_proj.weight": linear(p["decay_down"]),
        "forget_gate.f_b_proj.weight": linear(p["decay_up"]),
        "forget_gate.A_log": np.asarray(p["A_log"])[None, None, :, None],
        "forget_gate.dt_bias": np.asarray(p["dt_bias"]).reshape(-1),
        "g_a_proj.weight": linear(p["gate_down"]),
        "g_b_proj.weight": linear(p["gate_up"]),
    }


def olmo_hybrid(p, mixer):
    from transformers.models.olmo_hybrid import configuration_olmo_hybrid, modeling_olmo_hybrid

    config = configuration_olmo_hybrid.OlmoHybridConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        linear_num_key_heads=mixer.groups,
        linear_num_value_heads=mixer.heads,
        linear_key_head_dim=mixer.key_width,
        linear_value_head_dim=mixer.value_width,
        linear_conv_kernel_dim=mixer.conv,
        linear_allow_neg_eigval=mixer.allow_negative,
    )
    return modeling_olmo_hybrid.OlmoHybridGatedDeltaNet(config, 0), {
        **shared(p),
        "a_proj.weight": linear(p["a"]),
        "g_proj.weight": linear(p["z"]),
        "A_log": p["A_log"],
        "dt_bias": p["dt_bias"],
    }


GATED: dict[str, Any] = {"heads": 4, "key_width": 3, "value_width": 5, "conv": 3}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("build", "mixer"),
    [
        (kimi_linear, Kda(heads=4, key_width=5, value_width=5, conv=3, eps=1e-4, chunk=7)),
        (olmo_hybrid, GatedDeltaNet(**GATED, allow_negative=True, chunk=7)),
        (olmo_hybrid, GatedDeltaNet(**GATED, key_heads=2)),
    ],
)
def test_it_is_the_layer_of_transformers(build, mixer):
    import torch

    p = draw_params(mixer.params(Dims(WIDTH)))
    layer, weights = build(p, mixer)
    layer.load_state_dict({name: torch.tensor(np.array(array)) for name, array in weights.items()})
    with torch.no_grad():
        expected = layer(torch.tensor(X)).numpy()
    close(jax.jit(functools.partial(mixer, ctx=CTX))(p, X)[0], expected)


def test_published_initial_values_and_presets():
    dims = Dims(64)
    sizes: dict[str, Any] = {"heads": 32, "key_width": 2, "value_width": 2}
    for mixer, low in ((GatedDeltaNet(**sizes), 0.01), (Kda(**sizes), 1.0)):
        p = initialize(mixer.params(dims), jax.random.key(0))
        speed, step = np.exp(p["A_log"]), np.asarray(jax.nn.softplus(p["dt_bias"]))
        assert low <= speed.min() < 4 and 12 < speed.max() <= 16
        assert 1e-3 * 0.99 <= step.min() < 3e-3 and 3e-2 < step.max() <= 0.1 * 1.01
        toy = initialize(type(mixer).preset("toy", **sizes).params(dims), jax.random.key(0))
        assert np.exp(toy["A_log"]).max() <= 1 and jax.nn.softplus(toy["dt_bias"]).min() >= 0.05 * 0.99
    assert GatedDeltaNet(heads=4).widths(dims) == (12, 24)
    assert Gla(heads=4).widths(dims) == (8, 16)
    assert DeltaNet(heads=4).widths(dims) == Kda(heads=4).widths(dims) == (16, 16)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DeltaNet(heads=4, key_heads=3), "DeltaNet.key_heads: expected a divisor of heads 4, got 3"),
        (lambda: DeltaNet(heads=5).params(Dims(16)), "DeltaNet.key_width: 1.0 times model width 16 is not divisible"),
        (lambda: GatedDeltaNet(conv=0), "GatedDeltaNet.conv: expected a positive integer, got 0"),
        (lambda: GatedDeltaNet(a_range=(0.0, 16.0)), "GatedDeltaNet.a_range: expected 0 < low <= high"),
        (lambda: GatedDeltaNet.preset("fast"), "unknown GatedDeltaNet.preset 'fast'; allowed: toy"),
        (lambda: Kda(rank=-1), "Kda.rank: expected an integer >= 0, got -1"),
        (lambda: Kda(dt_range=(0.1, 0.01)), "Kda.dt_range: expected 0 < low <= high"),
        (lambda: Gla(temperature=0.0), "Gla.temperature: expected a positive number, got 0.0"),
        (lambda: Gla(rank=0), "Gla.rank: expected a positive integer, got 0"),
        (lambda: Gla(implementation="fast"), "unknown Gla.implementation 'fast'; allowed: auto, reference, xla"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
