"""Settings of tiny models of every family of attention, as transformers names them."""

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

MODERNBERT = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": HIDDEN,
    "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip

# name of the case: (class name without ForCausalLM, settings)
ATTENTION: dict[str, tuple[str, dict[str, Any]]] = {
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
    "bert": ("Bert", ENCODER),
    "bert_types": (
        "Bert", {**ENCODER, "num_hidden_layers": 2, "type_vocab_size": 3, "hidden_act": "relu", "layer_norm_eps": 1e-5}
    ),
    "roberta": ("Roberta", {**ENCODER, "type_vocab_size": 1}),
    "roberta_types": (
        "Roberta", {**ENCODER, "num_hidden_layers": 2, "pad_token_id": 2, "hidden_act": "gelu_new"}
    ),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": HIDDEN,
            "max_position_embeddings": 40,
        },
    ),
    "distilbert_untied": (
        "DistilBert",
        {
            "vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": HIDDEN,
            "max_position_embeddings": 40, "activation": "relu", "tie_word_embeddings": False,
            "sinusoidal_pos_embds": True,
        },
    ),
    "modernbert": ("ModernBert", {**MODERNBERT, "num_hidden_layers": 5}),
    "modernbert_biases": (
        "ModernBert",
        {
            **MODERNBERT, "num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True, "norm_bias": True,
            "classifier_bias": True, "decoder_bias": False, "classifier_activation": "silu", "local_attention": 6,
            "hidden_activation": "relu", "tie_word_embeddings": False, "norm_eps": 1e-3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "modernbert_global": ("ModernBert", {**MODERNBERT, "num_hidden_layers": 2, "global_attn_every_n_layers": 1}),
    "big_bird_full": ("BigBird", {**ENCODER, "num_hidden_layers": 2, "attention_type": "original_full"}),
}  # fmt: skip
