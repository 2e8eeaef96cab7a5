"""Retrieval beyond the training length (Mohtashami and Jaggi 2023, Landmark Attention).

    python -m experiments.long_context_retrieval --config=configs/long_context_retrieval.py:study --workdir=runs/found

Expected, `study` (trained on rows of up to 64 tokens, 3 seeds): at 8x the training length landmark >= .9, full
attention with rotary positions <= .2, windows without a full layer at chance beyond their reach.
Expected, `accelerator` (not yet run): as `study`.

Found (results/long_context_retrieval/study): landmark 1.00 at every length; full attention .20 at 8x (.10-.30); one
full layer over a window layer .68; windows .12 and .13.

Hardware and wall time, 2 CPU cores: `smoke` under two minutes, `study` an hour and a half beside much other work;
`accelerator` on one GPU or TPU.
"""

from __future__ import annotations

from experiments.long_context_retrieval import Arm, RunConfig
from jaxlm.attention.mask import Causal, Lambda, Window
from jaxlm.cache.landmark import Landmark
from jaxlm.core.errors import choose
from jaxlm.data.tasks.passkey import Passkey
from jaxlm.edit.landmark import LandmarkTokens
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.landmark import LandmarkAttention
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule

PRESETS = {
    "smoke": "two arms, one seed, 60 steps: that everything runs (< 60 s)",
    "study": "five arms, 3 seeds, 1x to 32x the training length (under an hour on 2 CPU cores)",
    "accelerator": "the same at a training length of 512 and period 64, width 256, bfloat16, one GPU or TPU chip",
}


def get_config(preset: str = "study") -> RunConfig:
    return {"smoke": _smoke, "study": _study, "accelerator": _accelerator}[choose("preset", preset, PRESETS)]()


def _arms(train: int, width: int, layers: int, heads: int, period: int, retrieved: int, **more) -> tuple[Arm, ...]:
    """The comparison: windows span half of the training length."""
    task = Passkey()

    def model(*mixers, edit=None) -> ModelSpec:
        blocks = tuple(Block(mixer=mixer, ffn=Mlp(activation="gelu")) for mixer in mixers)
        groups = (Group(blocks, layers // len(blocks)),)
        return ModelSpec(vocab_size=task.vocab_size + 1, width=width, layers=groups, edit=edit, remat="none", **more)

    span = train // 2
    attend = lambda mask: Attention(heads=heads, position="rotary", mask=mask)
    return (
        Arm("full", model(attend(Causal()))),
        Arm("window", model(attend(Window(span)))),
        Arm("sinks + window", model(attend(Lambda(span, 4)))),
        Arm("mixed spans", model(attend(Window(span)), attend(Causal()))),
        Arm(
            "landmark",
            model(LandmarkAttention(heads=heads, position="rotary", period=period), edit=LandmarkTokens(period=period)),
            cache=Landmark(blocks=retrieved),
        ),
    )


def _task(noise: int) -> Passkey:
    """Three pairs, three times each in training: with 46 words of noise, rows of 64 tokens (65 with the answer)."""
    return Passkey(train_lengths=(noise, noise), eval_lengths=(noise + 1, 32 * noise), pairs=3, copies=3)


def _study() -> RunConfig:
    return RunConfig(
        arms=_arms(64, width=64, layers=2, heads=4, period=8, retrieved=2),
        task=_task(46),
        seeds=(0, 1, 2),
        optimizer=Optimizer(
            schedule=Schedule("cosine", 3e-3, warmup=0.07, final_fraction=0.05),
            b2=0.98,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        steps=1200,
        batch_size=64,
    )


def _smoke() -> RunConfig:
    study = _study()
    return RunConfig(
        arms=(study.arms[0], study.arms[-1]),
        task=study.task,
        multiples=(1, 2, 4),
        optimizer=study.optimizer,
        steps=60,
        eval_examples=25,
    )


def _accelerator() -> RunConfig:
    return RunConfig(
        arms=_arms(512, width=256, layers=4, heads=8, period=64, retrieved=4, dtype="bfloat16"),
        task=_task(440),
        seeds=(0, 1, 2),
        optimizer=Optimizer(
            schedule=Schedule("linear", 1e-3, warmup=0.05, final_fraction=0.0),
            b2=0.98,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        steps=10_000,
        batch_size=64,
        piece=512,
    )
