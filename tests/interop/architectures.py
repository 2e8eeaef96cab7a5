"""Tiny random models of every family, as transformers builds them: the settings, and weights that hide nothing.

Used to record `tests/interop/data` (`python -m tests.interop.record`) and by the comparisons with transformers.
"""

from __future__ import annotations

from typing import Any

from tests.interop.attention_cases import ATTENTION
from tests.interop.recurrent_cases import RECURRENT

ENCODERS = ("Longformer", "BigBird", "Bert", "Roberta", "DistilBert", "ModernBert")
CLASSES = {"GPT2": "GPT2LMHeadModel", **{kind: f"{kind}ForMaskedLM" for kind in ENCODERS}}

CASES = ATTENTION | RECURRENT


def generates(name: str) -> bool:
    return not class_names(name)[0].endswith("ForMaskedLM")


def class_names(name: str) -> tuple[str, str]:
    """The classes of model and configuration in transformers."""
    kind = CASES[name][0]
    model = CLASSES.get(kind, f"{kind}ForCausalLM")
    return model, {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}.get(kind, f"{kind}Config")


def build(name: str, seed: int = 0) -> Any:
    """The model of a case, in evaluation mode, float32, with weights at unit gain.

    Matrices are normal over the square root of their fan-in, gains are spread about 1 (or 0 where 1 is added), biases
    and sinks are far from 0: with default weights a wrong setting would hardly show. Recurrences forget
    slowly enough for their states to matter.
    """
    import torch
    import transformers

    model_class, config_class = class_names(name)
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**CASES[name][1])
    # Falcon's eager path adds ALiBi twice, in the mask and to the scores (transformers 5.23); the default one does not.
    config._attn_implementation = "sdpa" if getattr(config, "alibi", False) else "eager"
    model = getattr(transformers, model_class)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    tied, seen = getattr(config, "tie_word_embeddings", False), set()
    zero_centred = config_class.startswith(("Gemma", "NemotronConfig", "RecurrentGemma", "Qwen3Next"))
    fading = {"A_log": -1.0, "recurrent_param": -3.0, "time_decay": -1.0}
    with torch.no_grad():
        for path, p in sorted(model.named_parameters()):
            if p.data_ptr() in seen:
                continue
            seen.add(p.data_ptr())
            noise = torch.randn(p.shape, generator=generator)
            leaf = path.rsplit(".", 1)[-1]
            embedding = any(part in path for part in ("embed", "wte", "wpe")) and "norm" not in path
            if "sinks" in leaf:
                p.copy_(noise)
            elif leaf in fading:
                p.copy_(fading[leaf] + 0.5 * noise)
            elif "time_mix" in leaf:
                p.copy_(0.5 + 0.2 * noise)
            elif p.ndim == 1 or ("norm" in path and p.ndim == 2):  # Cohere's norms have a row per head
                centre = 0.0 if "bias" in leaf or (zero_centred and "linear_attn" not in path) else 1.0
                p.copy_(centre + 0.2 * noise)
            elif embedding and "embed_out" not in path:
                p.copy_(
                    noise * (1.5 * p.shape[-1] ** -0.5 if tied and "pos" not in path and "wpe" not in path else 1.0)
                )
            else:
                across = model_class.startswith("GPT2") or (p.ndim == 3 and "conv" not in path)
                fan_in = p.shape[-2] if across else p.shape[-1]
                gain = 0.6 if "shared_transformer" in path else 1.3  # else float32 is 1e-3 from float64 in Zamba2
                p.copy_(noise * (gain * fan_in**-0.5))
        for path, b in model.named_buffers():
            if "correction" in path:
                b.copy_(0.3 * torch.randn(b.shape, generator=generator))
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model
