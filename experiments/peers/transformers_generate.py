"""Greedy generation by transformers, from a folder that `jaxlm.save_hf` wrote."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch


def load(folder: str | os.PathLike[str], threads: int) -> Any:
    """The model of the folder, float32, on ``threads`` threads."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # every text has its full length
    return model


@torch.inference_mode()
def greedy(model: Any, prompt: np.ndarray, new: int) -> np.ndarray:
    """The likeliest continuations, int64 [B, new], of prompts [B, L]."""
    tokens = torch.from_numpy(prompt).long()
    mask = torch.ones_like(tokens)
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False)
    return out[:, prompt.shape[1] :].numpy()
