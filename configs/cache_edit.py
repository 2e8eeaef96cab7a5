"""Editing a cached text against reading it again (He et al. 2024, Let the Code LLM Edit Itself When You Edit the Code).

    python -m experiments.cache_edit --config=configs/cache_edit.py:study --workdir=runs/edits

Expected, `study`: one layer: KL below 1e-4, the edit being exact. Deeper: the edited cache nearer to the recomputed
one than the unmoved one is, in every kind of edit; less CPU time than reading again by half or more. Found (seeds 0
and 1; the third is not run yet): KL below 4e-9 in one layer, at most 1.5e-4 in two and four, where keys that keep
their angles are .06 to 1.3 off; CPU time less by 74 to 87 %. The paper has 85 % less, with models of 1.3B to 33B
parameters.

Hardware and wall time: `smoke` under 60 s and `study` about half an hour on 2 CPU cores; `accelerator` (not yet run) on
one GPU or TPU.
"""

from __future__ import annotations

from experiments.cache_edit import RunConfig
from jaxlm.core.errors import choose
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule

PRESETS = {
    "smoke": "one and two layers, 20 steps: that everything runs (< 60 s)",
    "study": "1, 2 and 4 layers, 3 seeds, texts of 256 bytes (about half an hour on 2 CPU cores)",
    "accelerator": "2 to 8 layers of width 512, texts of 2048 bytes, bfloat16, one GPU or TPU chip",
}


def get_config(preset: str = "study") -> RunConfig:
    return {"smoke": _smoke, "study": _study, "accelerator": _accelerator}[choose("preset", preset, PRESETS)]()


def _model(layers: int, width: int, **more) -> ModelSpec:
    block = Block(mixer=Attention(heads=width // 32, position="rotary"), ffn=Mlp(activation="gelu"))
    size = ByteTokenizer().vocab_size
    return ModelSpec(vocab_size=size, width=width, layers=(Group((block,), layers),), remat="none", **more)


def _optimizer(rate: float) -> Optimizer:
    return Optimizer(schedule=Schedule("cosine", rate, warmup=0.05, final_fraction=0.1), clip_norm=1.0)


def _study() -> RunConfig:
    return RunConfig(
        models=tuple(_model(layers, 64) for layers in (1, 2, 4)),
        sizes=(4, 32),
        seeds=(0, 1, 2),
        optimizer=_optimizer(3e-3),
    )


def _smoke() -> RunConfig:
    return RunConfig(
        models=tuple(_model(layers, 32) for layers in (1, 2)),
        context=64,
        ahead=8,
        sizes=(4,),
        windows=4,
        repeats=1,
        optimizer=_optimizer(3e-3),
        steps=20,
        batch_size=8,
    )


def _accelerator() -> RunConfig:
    return RunConfig(
        models=tuple(_model(layers, 512, dtype="bfloat16") for layers in (2, 4, 8)),
        context=2048,
        ahead=128,
        sizes=(16, 128),
        seeds=(0, 1, 2),
        optimizer=_optimizer(1e-3),
        steps=5000,
        batch_size=32,
    )
