"""Records `tests/interop/data` with transformers: config.json, weights, logits and greedy continuations of every case.

    python -m tests.interop.record [case ...]

The layout is that of the golden folder ``hf``. Needs the extra ``torch`` and transformers; the tests that read the
records need neither.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from tests.interop.architectures import CASES, LENGTH, build

FOLDER = Path(__file__).resolve().parent / "data"
NEW, CLOSEST = 12, 0.02


def record(name: str) -> str:
    """Writes one case, with the first seed whose greedy continuation has no near-tie."""
    import torch

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
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        folder / "expected.npz",
        input_ids=tokens.astype(np.int32),
        logits=logits.astype(np.float32),
        greedy=torch.stack(greedy, 1).numpy().astype(np.int32),
    )
    return f"{name}: seed {seed}, logits of deviation {logits.std():.2f}, closest call {gap:.3f}"


def main(names: list[str]) -> None:
    for name in names or CASES:
        print(record(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
