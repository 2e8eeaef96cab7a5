"""The benchmark's decoder in PyTorch, written for speed: fused qkv, fused causal attention, fused AdamW, tied head.

RMS norm before each part, learned positions, exact GELU at four times the width, no biases: parameter for parameter the
jaxlm model of the benchmark, whose initial values it can take over, so that equal first losses show it is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Attention and perceptron, each behind a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.mixer_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.mixer_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))


class Gpt(nn.Module):
    """The whole model; returns the mean loss."""

    def __init__(self, vocab: int, width: int, heads: int, layers: int, length: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def take(self, params: Any) -> None:
        """Copies the parameters of the jaxlm model (one group of one block, numpy arrays)."""
        layers = params["group_0"]["block_0"]

        def put(target: torch.Tensor, value: Any) -> None:
            target.copy_(torch.from_numpy(np.array(value)))

        put(self.embed.weight, params["embed"]["table"])
        put(self.position, params["position"]["learned"]["table"])
        put(self.norm.weight, params["final_norm"]["scale"])
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            width = self.embed.weight.shape[1]
            # ours is (width, heads, 3, head width); torch keeps (3, heads, head width) x width
            put(block.qkv.weight, layers["mixer"]["qkv"][i].transpose(2, 1, 3, 0).reshape(3 * width, width))
            put(block.out.weight, layers["mixer"]["out"][i].reshape(width, width).T)
            put(block.up.weight, layers["ffn"]["in"][i].T)
            put(block.down.weight, layers["ffn"]["out"][i].T)
            put(block.mixer_norm.weight, layers["mixer_norm"]["scale"][i])
            put(block.ffn_norm.weight, layers["ffn_norm"]["scale"][i])


def optimizer(model: Gpt, rate: float) -> torch.optim.Optimizer:
    """Fused AdamW with the settings of the jaxlm run; decay on matrices alone."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8, fused=True)
