"""Mixture of experts against the modules of transformers, with the same weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxlm.core.types import Context, Dims
from tests.ffn.moe_cases import CASES, WIDTH
from tests.tiny import close, draw_params

pytestmark = pytest.mark.torch

X = np.random.default_rng(0).standard_normal((2, 9, WIDTH)).astype(np.float32)
SIZES = {"hidden_size": WIDTH, "intermediate_size": 6, "moe_intermediate_size": 6}


def mixtral(moe):
    from transformers.models.mixtral import configuration_mixtral, modeling_mixtral

    config = configuration_mixtral.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    return modeling_mixtral.MixtralSparseMoeBlock(config)


def qwen2_moe(moe):
    from transformers.models.qwen2_moe import configuration_qwen2_moe, modeling_qwen2_moe

    config = configuration_qwen2_moe.Qwen2MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, shared_expert_intermediate_size=10, norm_topk_prob=False
    )
    return modeling_qwen2_moe.Qwen2MoeSparseMoeBlock(config)


def gpt_oss(moe):
    from transformers.models.gpt_oss import configuration_gpt_oss, modeling_gpt_oss

    config = configuration_gpt_oss.GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, swiglu_limit=moe.expert.limit
    )
    return modeling_gpt_oss.GptOssMLP(config)


def deepseek_v3(moe):
    from transformers.models.deepseek_v3 import configuration_deepseek_v3, modeling_deepseek_v3

    config = configuration_deepseek_v3.DeepseekV3Config(
        **SIZES,
        n_routed_experts=8,
        num_local_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        n_shared_experts=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    return modeling_deepseek_v3.DeepseekV3MoE(config)


def llama4(moe):
    from transformers.models.llama4 import configuration_llama4, modeling_llama4

    config = configuration_llama4.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=6, num_local_experts=4, num_experts_per_tok=1, num_attention_heads=2
    )
    return modeling_llama4.Llama4TextMoe(config)


MODULES = {f.__name__: f for f in (mixtral, qwen2_moe, gpt_oss, deepseek_v3, llama4)}


def theirs(name: str, p) -> dict[str, np.ndarray]:
    """Our parameters under their names and in their layouts: gate and up one after the other, or interleaved."""
    p = {path: {k: np.asarray(v) for k, v in part.items()} if isinstance(part, dict) else np.asarray(part)
         for path, part in p.items()}  # fmt: skip
    inner, out = p["experts"]["in"], p["experts"]["out"]
    both = inner.swapaxes(2, 3).reshape(*inner.shape[:2], -1)  # [E, D, gate then up]
    router, shared = p["router"], p.get("shared")
    if name == "gpt_oss":
        return {
            "router.weight": router["kernel"].T,
            "router.bias": router["bias"],
            "experts.gate_up_proj": inner.reshape(*inner.shape[:2], -1),
            "experts.gate_up_proj_bias": p["experts"]["in_bias"].reshape(len(inner), -1),
            "experts.down_proj": out,
            "experts.down_proj_bias": p["experts"]["out_bias"],
        }
    if name == "llama4":
        state = {"router.weight": router["kernel"].T, "experts.gate_up_proj": both, "experts.down_proj": out}
    else:
        state = {
            "gate.weight": router["kernel"].T,
            "experts.gate_up_proj": both.swapaxes(1, 2),
            "experts.down_proj": out.swapaxes(1, 2),
        }
    if name == "deepseek_v3":
        state["gate.e_score_correction_bias"] = router["correction"]
    if shared is not None:
        at = "shared_experts" if name == "deepseek_v3" else "shared_expert"
        parts = {"gate_proj": shared["in"][..., 0], "up_proj": shared["in"][..., 1], "down_proj": shared["out"]}
        state |= {f"{at}.{part}.weight": weight.T for part, weight in parts.items()}
    if "shared_gate" in p:
        state["shared_expert_gate.weight"] = p["shared_gate"].T
    return state


@pytest.mark.parametrize("name", MODULES)
def test_equals_transformers(name):
    import torch

    moe = CASES[name]
    p = draw_params(moe.params(Dims(width=WIDTH)))
    module = MODULES[name](moe).eval()
    state = {key: torch.tensor(np.ascontiguousarray(value)) for key, value in theirs(name, p).items()}
    module.load_state_dict(state, strict=True)
    with torch.no_grad():
        out = module(torch.tensor(X))
    out = (out[0] if isinstance(out, tuple) else out).reshape(X.shape).numpy()
    ctx = Context(positions=np.arange(9)[None])
    close(jax.jit(lambda p, x: moe(p, x, ctx)[0])(p, X), out, 2e-6)
