"""The benchmark's decoder as transformers' `LlamaForCausalLM`, with the weights of a jaxlm model.

Rotary positions in halves, RMS norm before each part, SwiGLU, no biases, a head of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


def make(params: Any, *, vocab: int, width: int, heads: int, layers: int, hidden: int, length: int) -> nn.Module:
    """The model with the parameters of a jaxlm model (one group of one block, numpy arrays), ready to generate."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    block = params["group_0"]["block_0"]
    mixer, ffn = block["mixer"], block["ffn"]
    weights = {
        "model.embed_tokens.weight": params["embed"]["table"],
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params["head"]["kernel"].T,
    }
    for i in range(layers):
        own = {
            **{f"self_attn.{name}_proj.weight": mixer["qkv"][i][:, :, j].reshape(width, width).T
               for j, name in enumerate("qkv")},
            "self_attn.o_proj.weight": mixer["out"][i].reshape(width, width).T,
            "mlp.gate_proj.weight": ffn["in"][i][..., 0].T,
            "mlp.up_proj.weight": ffn["in"][i][..., 1].T,
            "mlp.down_proj.weight": ffn["out"][i].T,
            "input_layernorm.weight": block["mixer_norm"]["scale"][i],
            "post_attention_layernorm.weight": block["ffn_norm"]["scale"][i],
        }  # fmt: skip
        weights |= {f"model.layers.{i}.{name}": value for name, value in own.items()}
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=True)
    return model


@torch.inference_mode()
def greedy(model: Any, prompt: np.ndarray, new: int) -> np.ndarray:
    """The likeliest continuations, int64 [B, new], of prompts [B, L]."""
    tokens = torch.from_numpy(prompt).long()
    out = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new, do_sample=False
    )
    return out[:, prompt.shape[1] :].numpy()
