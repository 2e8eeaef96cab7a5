"""ERNIE 4.5 (Baidu 2025), dense: Llama with interleaved rotary."""

from __future__ import annotations

from jaxlm.ffn.glu import Glu
from jaxlm.interop import parts
from jaxlm.interop.family import Family, Key, Keys
from jaxlm.interop.rope import Rope
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block

FAMILY = Family(
    model_type="ernie4_5",
    architectures=("Ernie4_5ForCausalLM",),
    paper="Baidu ERNIE team 2025, ERNIE 4.5 Technical Report",
    block=Block(mixer=Attention(), ffn=Glu()),
    parts=(
        Keys(
            {
                **parts.keys(head_dim=128, default_eps=1e-5, tie=True),
                "use_bias": Key(("mixer.qkv_bias", "mixer.out_bias", "ffn.bias"), bool, False),
            }
        ),
        Rope(pairing="interleaved", theta=500_000.0),
    ),
    tensors=parts.tensors(),
)
