"""PyTorch's attention on a GPU: FlexAttention, compiled, with its BlockMask, and SDPA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np


def contestants(name: str, mask: Any, shape: tuple[int, ...], direction: str) -> list[Any]:
    """FlexAttention under the mask called ``name`` (and SDPA, if it is causal) for [B, L, H, K] bfloat16; none where
    torch sees no GPU or the mask has no FlexAttention form here."""
    if not importlib.util.find_spec("torch"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    batch, length, heads, width = shape
    draw = lambda: torch.randn(batch, heads, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    arrays = draw(), draw(), draw(), torch.randn(batch, heads, length, width, device="cuda", dtype=torch.bfloat16)
    found = []
    rule = mask_rule(name, mask, length, "cuda")
    if rule is not None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        blocks = create_block_mask(rule, None, None, length, length, device="cuda")
        compiled = torch.compile(flex_attention)
        found.append(_Torch("FlexAttention", lambda q, k, v: compiled(q, k, v, block_mask=blocks), arrays, direction))
    if name == "causal":
        fused = torch.nn.functional.scaled_dot_product_attention
        found.append(_Torch("torch SDPA", lambda q, k, v: fused(q, k, v, is_causal=True), arrays, direction))
    return found


def mask_rule(name: str, mask: Any, length: int, device: str) -> Callable[..., Any] | None:
    """The ``mask_mod`` of a mask of `experiments.suites.attention.masks`, by its name and fields."""
    import torch

    tensor = lambda x: torch.as_tensor(np.asarray(x), device=device)
    if name == "causal":
        return lambda b, h, i, j: i >= j
    if name.startswith("window"):
        size, sinks = mask.size, mask.sinks
        return lambda b, h, i, j: (i >= j) & ((i - j < size) | (j < sinks))
    if name == "documents":
        ids = tensor(mask.right.ids)
        return lambda b, h, i, j: (i >= j) & (ids[i] == ids[j])
    if name == "strided":
        window, far = mask.right.left, mask.right.right
        size, stride, block = window.size, far.stride, far.block
        return lambda b, h, i, j: (i >= j) & ((i - j < size) | ((i // block - j // block) % stride == 0))
    if name in ("BigBird", "vertical-slash"):
        causal, lists = (False, mask) if name == "BigBird" else (True, mask.right)
        count = -(-length // lists.size)
        table = np.zeros((count, count + 1), bool)
        for row, found in enumerate(lists.indices):
            table[row, np.asarray(found)] = True  # a negative entry falls into the spare column
        held, size = tensor(table[:, :count]), lists.size
        return lambda b, h, i, j: held[i // size, j // size] & ((i >= j) | (not causal))
    return None


class _Torch:
    """A contestant on the current stream."""

    def __init__(self, name: str, function: Callable[..., Any], arrays: tuple[Any, ...], direction: str) -> None:
        self.name, self._function, self._direction = name, function, direction
        *self._inputs, self._weights = arrays
        self._peak = 0

    def run(self, steps: int) -> list[Any]:
        import torch

        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        out = None
        for _ in range(steps):
            if self._direction == "forward":
                with torch.no_grad():
                    out = self._function(*self._inputs)
            else:
                out = torch.autograd.grad((self._function(*self._inputs) * self._weights).sum(), self._inputs)
        torch.cuda.synchronize()
        self._peak = torch.cuda.max_memory_allocated() - held
        return [out]

    def memory(self) -> float | None:
        return float(self._peak)
