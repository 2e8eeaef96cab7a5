"""Beyond the training length: position encodings and ways to a longer context, side by side on one model.

    python -m experiments.context_extension --config=configs/context_extension.py:study --workdir=runs/extension
    python -m experiments.context_extension --config=configs/context_extension.py:checkpoint \\
        --config.checkpoint=FOLDER --config.original=8192 --config.methods="('none','yarn','self_extend')"

Expected, `study` (L = 64, 3 seeds; loss of the last 32 tokens at 4x minus that at 1x): untouched rotary >= +.5 in the
mean and >= +.4 each; SelfExtend, LM-Infinite, window and ALiBi <= +.2 each; NTK at least .15 below untouched in each
seed; interpolation worse on average than untouched before fine-tuning, and best or tied after it at the longer length;
CLEX >= .6 below naive fine-tuning, with the control arm beside it: the same random positions, the equation not trained.

Found: README.md and results/context_extension/study; all met but interpolation after fine-tuning.

Hardware and wall time: `smoke` about a minute and `study` about an hour and three quarters on 2 CPU cores;
`accelerator` (not yet run) on one GPU or TPU; `checkpoint` as long as the model takes to read the windows.
"""

from __future__ import annotations

import dataclasses

from experiments.extension_plan import Base, RunConfig, Tuned
from jaxlm.attention.mask import Window
from jaxlm.core.errors import choose
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.path import Path
from jaxlm.mixer.softplus_attention import Lssa, Lssar
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.cope import CoPE
from jaxlm.position.kerple import Kerple
from jaxlm.position.randomized import Randomized
from jaxlm.position.relative_skew import RelativeSkew
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.clex import Clex
from jaxlm.position.scaling.linear import Linear
from jaxlm.position.scaling.ntk import Ntk
from jaxlm.position.scaling.power import Power
from jaxlm.position.scaling.truncated import Truncated
from jaxlm.position.scaling.yarn import Yarn
from jaxlm.position.xpos import XPos
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.optimizer import Optimizer, Rate
from jaxlm.train.schedule import Schedule

PRESETS = {
    "smoke": "two encodings, two methods, one tuned arm, one seed, 60 steps: that everything runs (< 60 s)",
    "study": "every encoding and method, L = 64 to 64x, 3 seeds (under two hours on 2 CPU cores)",
    "accelerator": "the same at L = 512, 6 layers, width 384, bfloat16, one GPU or TPU chip",
    "checkpoint": "the methods on a model that is there: name it with --config.checkpoint=FOLDER",
}

BIASES = ("alibi", "t5_bias", "sandwich", "fire")


def get_config(preset: str = "study") -> RunConfig:
    presets = {"smoke": _smoke, "study": _study, "accelerator": _accelerator, "checkpoint": _checkpoint}
    return presets[choose("preset", preset, PRESETS)]()


def _model(*mixers, width: int, layers: int, **more) -> ModelSpec:
    blocks = tuple(Block(mixer=mixer, ffn=Mlp(activation="gelu")) for mixer in mixers)
    size = ByteTokenizer().vocab_size
    return ModelSpec(vocab_size=size, width=width, layers=(Group(blocks, layers // len(blocks)),), **more)


def _bases(original: int, longest: int, width: int, layers: int, heads: int, **more) -> tuple[Base, ...]:
    """Rotary first: it is what is extended."""
    model = lambda *mixers: _model(*mixers, width=width, layers=layers, **more)
    attend = lambda position, **kind: Attention(heads=heads, position=position, **kind)
    encodings = {
        "rotary": "rotary",
        "none": "none",
        "sinusoidal": "sinusoidal",
        **{name: name for name in BIASES},
        "kerple_log": "kerple",
        "kerple_power": Kerple("power"),
        "xpos": XPos(scale_base=8.0 * original),
        "relative_skew": RelativeSkew(original),
        "cope": CoPE(original),
        "forgetting": "forgetting",
        "randomized_rotary": Randomized("rotary", max_position=longest + 2 * original),
    }
    return (
        *(Base(label, model(attend(position))) for label, position in encodings.items()),
        Base("mixed_spans", model(attend("rotary", mask=Window(original // 2)), attend("rotary"))),
        Base("path", model(Path(heads=heads))),
        Base("lssa", model(Lssa(heads=heads, position="rotary"))),
        Base("lssar", model(Lssar(heads=heads, position="rotary"))),
    )


def _tuned(original: int, slow_ode: Optimizer, fixed_ode: Optimizer) -> tuple[Tuned, ...]:
    """Equal budgets of tokens. At the longer length, 4x; and at L, with positions that reach further or are scaled."""
    scaled = lambda scaling: Rotary(scaling=scaling)
    long = (4 * original,)
    clex = scaled(Clex(original=original, max_factor=8, activation="silu"))
    return (
        Tuned("tuned_naive_1x", Rotary(), (original,)),
        Tuned("tuned_linear_1x", scaled(Linear(4.0)), (original,)),
        Tuned("tuned_clex_1x", clex, (original,), slow_ode),
        Tuned("tuned_clex_control_1x", clex, (original,), fixed_ode),
        Tuned("tuned_naive_4x", Rotary(), long),
        Tuned("tuned_linear_4x", scaled(Linear(4.0)), long),
        Tuned("tuned_ntk_4x", scaled(Ntk(4.0)), long),
        Tuned("tuned_yarn_4x", scaled(Yarn(4.0, original)), long),
        Tuned("tuned_power_4x", scaled(Power(exponent=0.5)), long),
        Tuned("tuned_truncated_4x", scaled(Truncated(original=original)), long),
        Tuned("tuned_abf_2x_4x", Rotary(base=500_000.0), (2 * original, *long)),
    )


def _optimizer(peak: float, warmup: float) -> Optimizer:
    return Optimizer(schedule=Schedule("cosine", peak, warmup=warmup, final_fraction=0.1), b2=0.98, weight_decay=0.01)


def _study() -> RunConfig:
    tune = _optimizer(1e-3, 0.05)
    ode = lambda factor: dataclasses.replace(tune, rates=(Rate("position/*", factor),))
    return RunConfig(
        bases=_bases(64, 4096, width=64, layers=2, heads=4, remat="none"),
        tuned=_tuned(64, ode(0.05), ode(0.0)),
        seeds=(0, 1, 2),
        steps=1200,
        batch_tokens=2048,
        optimizer=_optimizer(4e-3, 0.03),
        tune_steps=300,
        tune_optimizer=tune,
        needles=0.25,
        stream=100,
    )


def _smoke() -> RunConfig:
    study = _study()
    kept = ("rotary", "alibi")
    return dataclasses.replace(
        study,
        bases=tuple(base for base in study.bases if base.label in kept),
        methods=("none", "self_extend", "streaming"),
        tuned=study.tuned[2:3],
        multiples=(1, 4),
        seeds=(0,),
        steps=60,
        tune_steps=20,
        windows=8,
        passkeys=8,
        depths=3,
        decode_steps=8,
        stream=4,
        stream_rows=2,
    )


def _accelerator() -> RunConfig:
    tune = _optimizer(3e-4, 0.05)
    ode = lambda factor: dataclasses.replace(tune, rates=(Rate("position/*", factor),))
    return dataclasses.replace(
        _study(),
        bases=_bases(512, 32_768, width=384, layers=6, heads=6, dtype="bfloat16"),
        tuned=_tuned(512, ode(0.05), ode(0.0)),
        original=512,
        steps=20_000,
        batch_tokens=65_536,
        optimizer=_optimizer(1e-3, 0.02),
        tune_steps=2000,
        tune_optimizer=tune,
        needles=0.1,
        eval_tokens=2_097_152,
        workers=1,
    )


def _checkpoint() -> RunConfig:
    return RunConfig(checkpoint="FOLDER", original=2048, multiples=(1, 2, 4), windows=16, passkeys=8)
