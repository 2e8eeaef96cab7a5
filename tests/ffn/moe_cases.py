"""Mixtures of experts as the tests list them, and what they compute as a float64 loop over tokens."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router

WIDTH = 16


def glu(hidden: int, **args: Any) -> dict[str, Any]:
    return {"name": "glu", "args": {"hidden": hidden, **args}}


CASES = {
    "mixtral": Moe(experts=4, expert=glu(6)),
    "qwen2_moe": Moe(experts=4, expert=glu(6), router=Router(normalize=False), shared=glu(10), shared_gate=True),
    "gpt_oss": Moe(
        experts=4,
        expert=glu(6, activation="quick_gelu", limit=0.7, up_offset=1.0, bias=True),
        router=Router(score="softmax_top_k", bias=True),
    ),
    "deepseek_v3": Moe(
        experts=8,
        expert=glu(6),
        router=Router(top_k=3, score="sigmoid", correction=True, groups=4, top_groups=2, scale=2.5),
        shared=glu(6),
    ),
    "llama4": Moe(
        experts=4,
        expert=glu(6),
        router=Router(top_k=1, score="sigmoid", normalize=False),
        shared=glu(6),
        weigh_input=True,
    ),
    "mlp": Moe(experts=6, expert={"name": "mlp", "args": {"hidden": 6, "bias": True}}, router=Router(top_k=3)),
}

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
}


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def one_expert(method: Any, p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    hidden = np.tensordot(x, p["in"], 1) + p.get("in_bias", 0.0)
    act = ACTIVATIONS[method.activation]
    if hidden.ndim == 2:
        gate, up = hidden.T
        if method.limit:
            gate, up = np.minimum(gate, method.limit), np.clip(up, -method.limit, method.limit)
        hidden = act(gate) * (up + method.up_offset)
    else:
        hidden = act(hidden)
    return hidden @ p["out"] + p.get("out_bias", 0.0)


def route(router: Router, p: dict[str, np.ndarray], x: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The chosen experts of one token, their weights, and the scores of all as shares of 1."""
    logits = x @ p["kernel"] + p.get("bias", 0.0)
    scores = 1 / (1 + np.exp(-logits)) if router.score == "sigmoid" else softmax(logits)
    rank = scores + p.get("correction", 0.0)
    if router.groups:
        groups = rank.reshape(router.groups, -1)
        worth = np.sort(groups, 1)[:, -2:].sum(1)
        closed = np.argsort(-worth)[router.top_groups :]
        groups[closed] = -np.inf
        rank = groups.reshape(-1)
    chosen = np.argsort(-rank)[: router.top_k].tolist()
    weights = softmax(logits[chosen]) if router.score == "softmax_top_k" else scores[chosen]
    if router.normalize:
        weights = weights / weights.sum()
    return chosen, weights * router.scale, scores / scores.sum()


def loop(moe: Moe, p: Any, x_BLD: np.ndarray, capacity: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The layer token by token, and the chosen experts [B, L, k]; a full expert of a row (``capacity``) is left out."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    out = np.zeros(x_BLD.shape)
    choices = np.zeros((*x_BLD.shape[:2], moe.router.top_k), int)
    for b in range(len(x_BLD)):
        taken = np.zeros(moe.experts, int)
        for t, x in enumerate(x_BLD[b].astype(np.float64)):
            chosen, weights, _ = route(moe.router, p["router"], x)
            choices[b, t] = chosen
            for e, w in zip(chosen, weights, strict=True):
                taken[e] += 1
                if capacity is not None and taken[e] > capacity:
                    continue
                own = {name: array[e] for name, array in p["experts"].items()}
                out[b, t] += (
                    one_expert(moe.expert, own, w * x) if moe.weigh_input else w * one_expert(moe.expert, own, x)
                )
            if moe.shared is not None:
                gate = 1 / (1 + np.exp(-x @ p["shared_gate"])) if moe.shared_gate else 1.0
                out[b, t] += gate * one_expert(moe.shared, p["shared"], x)
    return out, choices
