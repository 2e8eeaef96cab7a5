"""Tiny encoder-decoders as transformers builds them, and the record of what they give (`tests/interop/data`).

    python -m tests.interop.pair_cases [case ...]

Needs the extra ``torch`` and transformers; the tests that read the records need neither.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent / "data"
T5 = {
    "vocab_size": 61, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_heads": 3, "layer_norm_epsilon": 1e-5,
    "decoder_start_token_id": 0,
}  # fmt: skip

# Names are folders; the settings are those of transformers' T5Config.
PAIRS: dict[str, dict[str, Any]] = {
    "t5": {**T5, "num_layers": 2, "num_decoder_layers": 3},
    "t5_gated": {
        **T5, "num_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "relative_attention_num_buckets": 10, "relative_attention_max_distance": 11,
    },
    "byt5": {
        **T5, "num_layers": 3, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "vocab_size": 48, "decoder_start_token_id": 5,
    },
    "t5_gated_silu": {**T5, "num_layers": 2, "feed_forward_proj": "gated-silu"},
}  # fmt: skip

SOURCE, TARGET, REAL, NEW, CLOSEST = 15, 6, 9, 8, 0.02


def build(name: str, seed: int = 0) -> Any:
    """The model of a case, in evaluation mode, float32, with weights at unit gain, gains about 1, a large bias."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.T5Config(**PAIRS[name])
    config._attn_implementation = "eager"
    model = transformers.T5ForConditionalGeneration(config).float().eval()
    generator, seen = torch.Generator().manual_seed(seed), set()
    with torch.no_grad():
        for path, p in sorted(model.named_parameters()):
            if p.data_ptr() in seen:
                continue
            seen.add(p.data_ptr())
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(1 + 0.2 * noise)
            elif "relative_attention_bias" in path:
                p.copy_(noise)
            else:  # an embedding, which is the head too, and is scaled for it only where the model says so
                tied = ("shared" in path or "lm_head" in path) and not config.scale_decoder_outputs
                p.copy_(noise * (0.4 if tied else 1.0 if "shared" in path or "lm_head" in path else p.shape[1] ** -0.5))
    return model


def observe(model: Any, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Inputs, logits, and the greedy answers to two sources, one of them padded; with the closest call of those."""
    import torch

    rng, size = np.random.default_rng(seed), model.config.vocab_size
    source, tokens = rng.integers(3, size, (2, SOURCE)), rng.integers(3, size, (2, TARGET))
    mask = (np.arange(SOURCE) < [[SOURCE], [REAL]]).astype(np.int64)
    inputs = {"input_ids": torch.from_numpy(source), "attention_mask": torch.from_numpy(mask)}

    def logits(rows: Any) -> Any:
        with torch.no_grad():
            return model(**inputs, decoder_input_ids=rows, use_cache=False).logits

    rows, gap = torch.full((2, 1), model.config.decoder_start_token_id), np.inf
    for _ in range(NEW):
        last = logits(rows)[:, -1]
        best = last.topk(2).values
        gap = min(gap, float((best[:, 0] - best[:, 1]).min()))
        rows = torch.cat((rows, last.argmax(-1)[:, None]), 1)
    out = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": tokens}
    return out | {"logits": logits(torch.from_numpy(tokens)).numpy(), "greedy": rows[:, 1:].numpy()}, gap


def record(name: str) -> str:
    """Writes one case, with the first seed whose greedy answers have no near-tie."""
    for seed in range(20):
        model = build(name, seed)
        expected, gap = observe(model, seed)
        if gap > CLOSEST:
            break
    else:
        raise SystemExit(f"{name}: every seed has a near-tie")
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    narrow = {key: x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for key, x in expected.items()}
    np.savez_compressed(folder / "expected.npz", **narrow)
    return f"{name}: seed {seed}, logits of deviation {expected['logits'].std():.2f}, closest call {gap:.3f}"


if __name__ == "__main__":
    for name in sys.argv[1:] or PAIRS:
        print(record(name), flush=True)
