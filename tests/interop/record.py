"""Records `tests/interop/data` with transformers: config.json, weights, logits and greedy continuations of every case;
of encoders, in place of continuations, logits under other inputs (`variants`).

    python -m tests.interop.record [case ...]

The layout is that of the golden folder ``hf``. Needs the extra ``torch`` and transformers; the tests that read the
records need neither.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.interop.architectures import CASES, build, generates
from tests.interop.attention_cases import LENGTH

FOLDER = Path(__file__).resolve().parent / "data"
NEW, CLOSEST = 12, 0.02
# Of encoders: a row longer than BigBird's cases attend in full, the real tokens of its second row, a length that is
# attended in full, and Longformer's global tokens.
ENCODED, REAL, SHORT, GLOBAL = 22, 17, 12, (0, 5)


def record(name: str) -> str:
    """Writes one case; a model that generates, with the first seed whose greedy continuation has no near-tie."""
    import torch

    if not generates(name):
        model = build(name)
        expected = variants(model)
        _write(FOLDER / name, model, expected)
        return f"{name}: logits of deviation {expected['logits'].std():.2f}"
    for seed in range(20):
        model = build(name, seed)
        tokens = np.random.default_rng(seed).integers(3, model.config.vocab_size, (2, LENGTH))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens), use_cache=False).logits.numpy()
            rows, greedy, gap = torch.from_numpy(tokens), [], np.inf
            for _ in range(NEW):
                last = model(rows, use_cache=False).logits[:, -1]
                best = last.topk(2).values
                gap = min(gap, float((best[:, 0] - best[:, 1]).min()))
                greedy.append(last.argmax(-1))
                rows = torch.cat((rows, greedy[-1][:, None]), 1)
        if gap > CLOSEST:
            break
    else:
        raise SystemExit(f"{name}: every seed has a near-tie")
    expected = {"input_ids": tokens, "logits": logits, "greedy": torch.stack(greedy, 1).numpy()}
    _write(FOLDER / name, build(name, seed), expected)  # built anew: RWKV's halves its weights when it runs
    return f"{name}: seed {seed}, logits of deviation {logits.std():.2f}, closest call {gap:.3f}"


def variants(model: Any) -> dict[str, np.ndarray]:
    """Logits of an encoder: of whole rows, with padding, of short rows; with types and globals where it has them."""
    import torch

    def logits(ids: np.ndarray, **more: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(ids), **{key: torch.from_numpy(x) for key, x in more.items()}).logits.numpy()

    config = model.config
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (2, ENCODED))
    mask = (np.arange(ENCODED) < [[ENCODED], [REAL]]).astype(np.int64)
    padded = np.where(mask, tokens, config.pad_token_id)
    out = {"input_ids": tokens, "logits": logits(tokens), "attention_mask": mask}
    out["padded_logits"] = logits(padded, attention_mask=mask)
    if getattr(config, "type_vocab_size", 1) > 1:
        out["token_types"] = tokens % config.type_vocab_size
        out["typed_logits"] = logits(tokens, token_type_ids=out["token_types"])
    if config.model_type == "longformer":
        out["global_tokens"] = np.asarray(GLOBAL)
        chosen = np.broadcast_to(np.isin(np.arange(ENCODED), GLOBAL), mask.shape).astype(np.int64)
        out["global_logits"] = logits(padded, attention_mask=mask, global_attention_mask=chosen)
    out["short_logits"] = logits(tokens[:, :SHORT])  # last: it turns BigBird's blocks off for good
    return out


def _write(folder: Path, model: Any, expected: dict[str, np.ndarray]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    narrow = {key: x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for key, x in expected.items()}
    np.savez_compressed(folder / "expected.npz", **narrow)


def main(names: list[str]) -> None:
    for name in names or CASES:
        print(record(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
