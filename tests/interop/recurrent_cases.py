"""Settings of tiny models of every family with recurrent layers, as transformers names them."""

from __future__ import annotations

from typing import Any

from tests.interop.attention_cases import HEADS, LAYERS, LLAMA, MOE, VOCABULARY, WIDTH, rope

MAMBA = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 6, "conv_kernel": 3}
MAMBA2 = {**MAMBA, "num_heads": 6, "head_dim": 8, "chunk_size": 8}
NEMOTRON_H = {
    **{key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}, "mamba_num_heads": 4,
    "mamba_head_dim": 8, "ssm_state_size": 6, "conv_kernel": 3, "chunk_size": 8, "head_dim": 8, "n_routed_experts": 4,
    "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 10,
}  # fmt: skip
ZAMBA2 = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS, "mamba_d_state": 6, "chunk_size": 8,
    "intermediate_size": 40, "adapter_rank": 3,
}  # fmt: skip
FALCON_H1 = {
    **LLAMA, "mamba_d_ssm": 40, "mamba_n_heads": 4, "mamba_d_state": 6, "mamba_d_conv": 3, "mamba_chunk_size": 8,
}  # fmt: skip

# Classes that are not called <kind>ForCausalLM; those for masked language models look ahead and do not generate.

# name of the case: (class name without ForCausalLM, settings)
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {**MAMBA, "time_step_rank": 5, "layer_norm_epsilon": 1e-3}),
    "mamba_biases": (
        "Mamba", {**MAMBA, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "expand": 3}
    ),
    "falcon_mamba": ("FalconMamba", {**MAMBA, "mixer_rms_eps": 0.1, "time_step_rank": 5}),
    "falcon_mamba_biases": (
        "FalconMamba", {**MAMBA, "num_hidden_layers": 2, "use_bias": True, "tie_word_embeddings": False}
    ),
    "mamba2": ("Mamba2", {**MAMBA2, "n_groups": 3, "layer_norm_epsilon": 1e-3}),
    "mamba2_one_group": (
        "Mamba2",
        {
            **MAMBA2, "n_groups": 1, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True,
            "time_step_limit": [0.3, 0.9], "num_heads": 9, "expand": 3,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            **LLAMA, "num_hidden_layers": 4, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 6,
            "conv1d_width": 3, "logits_soft_cap": 8.0, "hidden_size": 40,
        },
    ),
    "recurrent_gemma_biases": (
        "RecurrentGemma",
        {
            **LLAMA, "num_hidden_layers": 2, "block_types": ["attention", "recurrent"], "attention_bias": True,
            "tie_word_embeddings": False, "attention_window_size": 4, **rope(theta=100.0),
        },
    ),
    "rwkv": (
        "Rwkv",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 40,
            "attention_hidden_size": 32, "rescale_every": 0, "layer_norm_epsilon": 1e-3,
        },
    ),
    "rwkv_rescaled": (
        "Rwkv",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "rescale_every": 2,
            "tie_word_embeddings": True, "layer_norm_epsilon": 1e-6,
        },
    ),
    "jamba": (
        "Jamba",
        {
            **LLAMA, "num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 5,
            "num_experts_per_tok": 3, "mamba_d_state": 6, "mamba_d_conv": 3, "mamba_dt_rank": 5, "rms_norm_eps": 1e-3,
        },
    ),
    "jamba_dense": (
        "Jamba",
        {
            **LLAMA, "num_hidden_layers": 2, "num_experts": 1, "mamba_d_state": 6, "mamba_expand": 3,
            "mamba_conv_bias": False, "mamba_proj_bias": True, "tie_word_embeddings": True,
        },
    ),
    "bamba": (
        "Bamba",
        {
            **LLAMA, "attn_layer_indices": [1], "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 6,
            "mamba_d_conv": 3, "rms_norm_eps": 1e-3, "mamba_chunk_size": 8,
        },
    ),
    "bamba_biases": (
        "Bamba",
        {
            **LLAMA, "num_hidden_layers": 2, "attn_layer_indices": [0], "mamba_n_heads": 9, "mamba_expand": 3,
            "mamba_d_state": 6, "mamba_conv_bias": False, "mamba_proj_bias": True, "attention_bias": True,
            "mlp_bias": True, "time_step_limit": [0.3, 0.9], "mamba_chunk_size": 8, **rope(theta=100.0),
        },
    ),
    "nemotron_h": (
        "NemotronH",
        {
            **NEMOTRON_H, "n_groups": 2,
            "layers_block_type": [
                "linear_attention", "mlp", "full_attention", "linear_attention", "moe", "full_attention", "mlp"
            ],
        },
    ),
    "nemotron_h_biases": (
        "NemotronH",
        {
            **NEMOTRON_H, "n_groups": 1, "use_bias": True, "use_conv_bias": False, "mlp_bias": True,
            "time_step_min": 0.5, "mlp_hidden_act": "silu",
            "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": False,
            "layers_block_type": ["linear_attention", "moe", "linear_attention"],
        },
    ),
    "falcon_h1": (
        "FalconH1",
        {
            **FALCON_H1, "mamba_rms_norm": True, "mamba_n_groups": 2, "key_multiplier": 0.7, "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.6, "attention_in_multiplier": 0.8, "attention_out_multiplier": 1.2,
            "mlp_multipliers": [0.7, 1.4], "ssm_multipliers": [0.8, 1.2, 0.9, 1.1, 0.7], "embedding_multiplier": 1.5,
            "lm_head_multiplier": 0.8,
        },
    ),
    "falcon_h1_gated": (
        "FalconH1",
        {
            **FALCON_H1, "num_hidden_layers": 2, "mamba_rms_norm": True, "mamba_norm_before_gate": False,
            "mamba_proj_bias": True, "projectors_bias": True, "mamba_conv_bias": False, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": True, "time_step_limit": [0.3, 0.9],
        },
    ),
    "falcon_h1_no_norm": (
        "FalconH1", {**FALCON_H1, "num_hidden_layers": 2, "mamba_d_ssm": None, "mamba_n_heads": 6}
    ),
    "zamba2": (
        "Zamba2",
        {
            **ZAMBA2, "num_hidden_layers": 4, "n_mamba_heads": 6, "mamba_ngroups": 2, "mamba_d_conv": 3,
            "num_mem_blocks": 2, "use_shared_attention_adapter": True, "use_mem_rope": True, "rms_norm_eps": 1e-3,
            "time_step_min": 0.2, **rope(theta=100.0),
            "layers_block_type": ["hybrid", "hybrid", "linear_attention", "hybrid"],
        },
    ),
    "zamba2_plain": (
        "Zamba2",
        {
            **ZAMBA2, "num_hidden_layers": 3, "n_mamba_heads": 8, "mamba_expand": 3, "num_key_value_heads": 2,
            "add_bias_linear": True, "hidden_act": "silu",
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **LLAMA, **MOE, "num_hidden_layers": 4, "head_dim": 8, "mlp_only_layers": [1], "linear_num_key_heads": 2,
            "linear_num_value_heads": 6, "linear_key_head_dim": 5, "linear_value_head_dim": 7,
            "linear_conv_kernel_dim": 3, "shared_expert_intermediate_size": 20, "full_attention_interval": 2,
            "rms_norm_eps": 1e-3, "attention_bias": True, **rope(partial_rotary_factor=0.5),
        },
    ),
    "qwen3_next_plain": (
        "Qwen3Next",
        {
            **LLAMA, **MOE, "num_hidden_layers": 2, "head_dim": 16, "linear_num_key_heads": 3,
            "linear_num_value_heads": 3, "linear_key_head_dim": 4, "linear_value_head_dim": 4, "norm_topk_prob": False,
            "shared_expert_intermediate_size": 12, "tie_word_embeddings": True, "decoder_sparse_step": 2,
            "layer_types": ["full_attention", "linear_attention"],
        },
    ),
}  # fmt: skip
