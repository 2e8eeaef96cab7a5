"""Tiny random models of every family, as transformers builds them: the settings, and weights that hide nothing.

Used to record `tests/interop/data` (`python -m tests.interop.record`) and by the comparisons with transformers.
"""

from __future__ import annotations

from typing import Any

VOCABULARY, WIDTH, HEADS, GROUPS, HIDDEN, LAYERS, LENGTH = 40, 24, 4, 2, 32, 3, 20

LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PERSIMMON = {**{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}, "num_attention_heads": 3}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
FALCON = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
DEEPSEEK = {
    "num_key_value_heads": HEADS, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "v_head_dim": 5, "qk_nope_head_dim": 6,
    "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
    "first_k_dense_replace": 1, "n_shared_experts": 2,
}  # fmt: skip
CORRECTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 1,
    "n_shared_experts": 2,
}  # fmt: skip
MOE = {"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2}


def rope(kind: str = "default", theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LONG = {"short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 2.5, 4.0], "original_max_position_embeddings": 16}

ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN, "max_position_embeddings": 40, "sep_token_id": 2,
}  # fmt: skip

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
CLASSES = {"GPT2": "GPT2LMHeadModel", "Longformer": "LongformerForMaskedLM", "BigBird": "BigBirdForMaskedLM"}

# name of the case: (class name without ForCausalLM, settings)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**LLAMA, **rope()}),
    "llama_tied_biases": (
        "Llama", {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 8}
    ),
    "llama_linear": ("Llama", {**LLAMA, **rope("linear", factor=3.0)}),
    "llama_dynamic": ("Llama", {**LLAMA, "max_position_embeddings": 12, **rope("dynamic", factor=2.0)}),
    "llama_yarn": ("Llama", {**LLAMA, **rope("yarn", factor=4.0, original_max_position_embeddings=16)}),
    "llama_yarn_mscale": (
        "Llama",
        {
            **LLAMA,
            **rope(
                "yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.0, truncate=False
            ),
        },
    ),
    "llama_llama3": (
        "Llama",
        {
            **LLAMA,
            **rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
            ),
        },
    ),
    "llama_longrope": ("Llama", {**LLAMA, **rope("longrope", factor=4.0, **LONG)}),
    "llama_proportional": ("Llama", {**LLAMA, "head_dim": 8, **rope("proportional", partial_rotary_factor=0.5)}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 6}),
    "mistral_full": ("Mistral", {**LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2", {**LLAMA}),
    "qwen2_windows": (
        "Qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    ),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {**LLAMA, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {
            **LLAMA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **LLAMA, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 12,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "phi": ("Phi", {**LLAMA, "num_key_value_heads": HEADS, **rope(partial_rotary_factor=0.4)}),
    "phi_qk_norm": ("Phi", {**LLAMA, "qk_layernorm": True, **rope(partial_rotary_factor=0.4)}),
    "phi3": ("Phi3", {**LLAMA, "sliding_window": 6}),
    "phi3_longrope": (
        "Phi3", {**LLAMA, "original_max_position_embeddings": 16, **rope("longrope", **LONG)}
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2_scales": (
        "GPT2", {**GPT2, "n_inner": 40, "scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}
    ),
    "gpt_bigcode": ("GPTBigCode", GPT2),
    "gpt_bigcode_heads": ("GPTBigCode", {**GPT2, "multi_query": False}),
    "gpt_neox": ("GPTNeoX", {**LLAMA, **rope(partial_rotary_factor=0.4)}),
    "gpt_neox_serial": ("GPTNeoX", {**LLAMA, "use_parallel_residual": False, "attention_bias": False}),
    "gptj": ("GPTJ", {**GPT2, "rotary_dim": 4}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 6}),
    "bloom_normed": (
        "Bloom",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 3,
            "apply_residual_connection_post_layernorm": True,
        },
    ),
    "mpt": ("Mpt", {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 6}),
    "mpt_scale": (
        "Mpt",
        {
            "vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 2, "n_heads": HEADS,
            "attn_config": {"softmax_scale": 0.3},
        },
    ),
    "falcon": ("Falcon", FALCON),
    "falcon_new": ("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": GROUPS, "bias": True}),
    "falcon_new_one_norm": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": GROUPS, "num_ln_in_parallel_attn": 1},
    ),
    "falcon_alibi": (
        "Falcon",
        {**FALCON, "num_attention_heads": 6, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "opt": (
        "OPT",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "ffn_dim": HIDDEN, "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH,
        },
    ),
    "opt_post_norm": (
        "OPT",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "ffn_dim": HIDDEN, "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH,
            "do_layer_norm_before": False, "enable_bias": False,
        },
    ),
    "opt_350m": (
        "OPT",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "ffn_dim": HIDDEN, "max_position_embeddings": 64, "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
    ),
    "stablelm": ("StableLm", {**LLAMA, "use_qkv_bias": True, **rope(partial_rotary_factor=0.4)}),
    "stablelm_qk_norm": (
        "StableLm", {**LLAMA, "qk_layernorm": True, "use_parallel_residual": True, **rope(partial_rotary_factor=0.4)}
    ),
    "olmo2": ("Olmo2", LLAMA),
    "olmo3": (
        "Olmo3",
        {
            **LLAMA, "num_hidden_layers": 5, "sliding_window": 6,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0, "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    ),
    "starcoder2": ("Starcoder2", {**LLAMA, "sliding_window": 6}),
    "cohere": ("Cohere", {**LLAMA, "use_qk_norm": True, "logit_scale": 0.25}),
    "cohere2": (
        "Cohere2",
        {**LLAMA, "num_hidden_layers": 4, "sliding_window": 6, "sliding_window_pattern": 2, "logit_scale": 0.5},
    ),
    "granite": (
        "Granite",
        {
            **LLAMA, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "smollm3": ("SmolLM3", {**LLAMA, "no_rope_layer_interval": 2}),
    "mixtral": ("Mixtral", {**LLAMA, "num_local_experts": 6}),
    "mixtral_window": ("Mixtral", {**LLAMA, "num_hidden_layers": 2, "num_local_experts": 3, "sliding_window": 6}),
    "qwen2_moe": (
        "Qwen2Moe", {**LLAMA, **MOE, "shared_expert_intermediate_size": 20, "mlp_only_layers": [0]}
    ),
    "qwen3_moe": ("Qwen3Moe", {**LLAMA, **MOE, "head_dim": 8, "norm_topk_prob": True, "decoder_sparse_step": 2}),
    "gpt_oss": (
        "GptOss",
        {
            **LLAMA, "num_hidden_layers": 2, "head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 2,
            "sliding_window": 6, "swiglu_limit": 2.0,
            **rope("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **LLAMA, **DEEPSEEK, "q_lora_rank": 12,
            **rope(
                "yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.8
            ),
        },
    ),
    "deepseek_v3_plain": (
        "DeepseekV3", {**LLAMA, **DEEPSEEK, "num_hidden_layers": 2, "q_lora_rank": None, "attention_bias": True}
    ),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "window_size": 6,
            "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1], [["local"], 1]],
        },
    ),
    "olmo": ("Olmo", {**LLAMA, "clip_qkv": 0.7, "attention_bias": True}),
    "olmoe": ("Olmoe", {**LLAMA, "num_hidden_layers": 2, "num_experts": 5, "num_experts_per_tok": 3, "clip_qkv": 0.9}),
    "granitemoe": (
        "GraniteMoe",
        {
            **LLAMA, "num_hidden_layers": 2, "num_local_experts": 5, "num_experts_per_tok": 3, "logits_scaling": 2.0,
            "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
        },
    ),
    "granitemoeshared": (
        "GraniteMoeShared",
        {
            **LLAMA, "num_hidden_layers": 2, "num_local_experts": 4, "shared_intermediate_size": 20,
            "tie_word_embeddings": True, "attention_multiplier": 0.3, "attention_bias": True,
        },
    ),
    "granitemoeshared_none": (
        "GraniteMoeShared", {**LLAMA, "num_hidden_layers": 1, "num_local_experts": 3, "attention_multiplier": 0.4}
    ),
    "glm": ("Glm", {**LLAMA, "head_dim": 8}),
    "glm4": ("Glm4", {**LLAMA, "head_dim": 8, "attention_bias": False, **rope(partial_rotary_factor=0.75)}),
    "helium": ("Helium", {**LLAMA, "head_dim": 6, "attention_bias": True, "mlp_bias": True}),
    "arcee": ("Arcee", {**LLAMA, "mlp_bias": True}),
    "seed_oss": ("SeedOss", {**LLAMA, "head_dim": 8, "attention_out_bias": True}),
    "ernie4_5": ("Ernie4_5", {**LLAMA, "head_dim": 8, "use_bias": True}),
    "nemotron": ("Nemotron", {**LLAMA, "head_dim": 8, "mlp_bias": True}),
    "exaone4": ("Exaone4", {**LLAMA, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 6}),
    "exaone4_full": (
        "Exaone4",
        {**LLAMA, "num_hidden_layers": 2, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
    "ministral": ("Ministral", {**LLAMA, "head_dim": 6, "sliding_window": 6}),
    "ministral_mixed": (
        "Ministral",
        {
            **LLAMA, "num_hidden_layers": 2, "head_dim": 8, "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "codegen": ("CodeGen", {**GPT2, "n_head": 8, "n_embd": 32, "rotary_dim": 2, "n_layer": 2}),
    "persimmon": ("Persimmon", PERSIMMON),
    "persimmon_plain": ("Persimmon", {**PERSIMMON, "num_hidden_layers": 2, "qk_layernorm": False}),
    "dots1": (
        "Dots1",
        {
            **LLAMA, **CORRECTED, "head_dim": 8, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
            "routed_scaling_factor": 1.5, "sliding_window": 6, "max_window_layers": 1,
        },
    ),
    "glm4_moe": (
        "Glm4Moe",
        {**LLAMA, **CORRECTED, "head_dim": 8, "norm_topk_prob": False, "use_qk_norm": True, "attention_bias": True},
    ),
    "glm4_moe_plain": ("Glm4Moe", {**LLAMA, **CORRECTED, "num_hidden_layers": 2, "head_dim": 8}),
    "hunyuan": (
        "HunYuanDenseV1", {**LLAMA, "head_dim": 8, **rope("dynamic", theta=500.0, alpha=20.0, factor=1.0)}
    ),
    "hunyuan_plain": ("HunYuanDenseV1", {**LLAMA, "num_hidden_layers": 2, "head_dim": 6, "attention_bias": True}),
    "mpt_clip": (
        "Mpt",
        {
            "vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 2, "n_heads": HEADS,
            "attn_config": {"clip_qkv": 0.7},
        },
    ),
    "llama4": (
        "Llama4",
        {
            **LLAMA, "head_dim": 8, "intermediate_size_mlp": 28, "num_hidden_layers": 4, "num_local_experts": 4,
            "interleave_moe_layer_step": 2, "attention_chunk_size": 6, "floor_scale": 4, "attn_scale": 0.5,
            "no_rope_layer_interval": 2,
        },
    ),
    "longformer": ("Longformer", {**ENCODER, "attention_window": [4, 8, 4], "type_vocab_size": 1}),
    "longformer_one_window": (
        "Longformer",
        {**ENCODER, "num_hidden_layers": 2, "attention_window": 4, "hidden_act": "gelu_new", "pad_token_id": 2},
    ),
    "big_bird": ("BigBird", {**ENCODER, "block_size": 2, "num_random_blocks": 2}),
    "big_bird_rescaled": (
        "BigBird",
        {
            **ENCODER, "num_hidden_layers": 2, "block_size": 3, "num_random_blocks": 1, "use_bias": False,
            "rescale_embeddings": True, "hidden_act": "relu", "type_vocab_size": 3,
        },
    ),
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
    "big_bird_full": ("BigBird", {**ENCODER, "num_hidden_layers": 2, "attention_type": "original_full"}),
}  # fmt: skip


def generates(name: str) -> bool:
    return not class_names(name)[0].endswith("ForMaskedLM")


def class_names(name: str) -> tuple[str, str]:
    """The classes of model and configuration in transformers."""
    kind = CASES[name][0]
    model = CLASSES.get(kind, f"{kind}ForCausalLM")
    return model, {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}.get(kind, f"{kind}Config")


def build(name: str, seed: int = 0) -> Any:
    """The model of a case, in evaluation mode, float32, with weights at unit gain.

    Matrices are normal over the square root of their fan-in, gains are spread about 1 (or 0 where 1 is added), biases
    and sinks are far from 0: with default weights a wrong setting would hardly show. Recurrences forget
    slowly enough for their states to matter.
    """
    import torch
    import transformers

    model_class, config_class = class_names(name)
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**CASES[name][1])
    # Falcon's eager path adds ALiBi twice, in the mask and to the scores (transformers 5.23); the default one does not.
    config._attn_implementation = "sdpa" if getattr(config, "alibi", False) else "eager"
    model = getattr(transformers, model_class)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    tied, seen = getattr(config, "tie_word_embeddings", False), set()
    zero_centred = config_class.startswith(("Gemma", "NemotronConfig", "RecurrentGemma", "Qwen3Next"))
    fading = {"A_log": -1.0, "recurrent_param": -3.0, "time_decay": -1.0}
    with torch.no_grad():
        for path, p in sorted(model.named_parameters()):
            if p.data_ptr() in seen:
                continue
            seen.add(p.data_ptr())
            noise = torch.randn(p.shape, generator=generator)
            leaf = path.rsplit(".", 1)[-1]
            embedding = any(part in path for part in ("embed", "wte", "wpe")) and "norm" not in path
            if "sinks" in leaf:
                p.copy_(noise)
            elif leaf in fading:
                p.copy_(fading[leaf] + 0.5 * noise)
            elif "time_mix" in leaf:
                p.copy_(0.5 + 0.2 * noise)
            elif p.ndim == 1 or ("norm" in path and p.ndim == 2):  # Cohere's norms have a row per head
                centre = 0.0 if "bias" in leaf or (zero_centred and "linear_attn" not in path) else 1.0
                p.copy_(centre + 0.2 * noise)
            elif embedding and "embed_out" not in path:
                p.copy_(
                    noise * (1.5 * p.shape[-1] ** -0.5 if tied and "pos" not in path and "wpe" not in path else 1.0)
                )
            else:
                across = model_class.startswith("GPT2") or (p.ndim == 3 and "conv" not in path)
                fan_in = p.shape[-2] if across else p.shape[-1]
                gain = 0.6 if "shared_transformer" in path else 1.3  # else float32 is 1e-3 from float64 in Zamba2
                p.copy_(noise * (gain * fan_in**-0.5))
        for path, b in model.named_buffers():
            if "correction" in path:
                b.copy_(0.3 * torch.randn(b.shape, generator=generator))
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model
