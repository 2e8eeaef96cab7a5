"""Forward and backward passes of a causal language model of transformers, from a folder that `jaxlm.save_hf` wrote."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


class Gradient:
    """The mean loss and its gradient, float32, on ``threads`` threads; ``settings`` go into the configuration."""

    def __init__(self, name: str, folder: str | os.PathLike[str], batch: Any, threads: int, **settings: Any):
        from transformers import AutoModelForCausalLM

        self.name, self._threads = name, threads
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).train()
        self._tokens, self._targets = (torch.from_numpy(np.asarray(batch[k])).long() for k in ("tokens", "targets"))

    def run(self, steps: int) -> list[float]:
        """The losses of ``steps`` passes; parameters stay as they are."""
        torch.set_num_threads(self._threads)
        losses = []
        for _ in range(steps):
            logits = self._model(self._tokens, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), self._targets.flatten())
            loss.backward()
            self._model.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses

    def memory(self) -> None:
        return None
