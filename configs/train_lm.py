"""A byte-level language model of the Python standard library, or of any other text.

    python -m experiments.train_lm --config=configs/train_lm.py:small --workdir=runs/lm

The standard library differs between Python releases, so a loss means something only beside the corpus hash that is
printed with it. Expected, `smoke` on Python 3.11.7 (validation corpus d9e94380...): 3.19 +- 0.10 validation bits per
byte, where 8 is no model at all. Not yet run to the end: `small`, `gpu`, `tpu`.

`longer` and `longest` go on from `small` to 4 and 16 times its length, the curriculum of long-context training: a
larger rotary base (Xiong et al. 2023), documents that see only themselves, as many tokens a step:

    python -m experiments.train_lm --config=configs/train_lm.py:longer --config.start=runs/lm --workdir=runs/long
    python -m experiments.train_lm --config=configs/train_lm.py:longest --config.start=runs/long --workdir=runs/longest

`patches` is `small` with layers that see patches of bytes, cut where the next byte is hard to tell (BLT), by a table of
counts or by a model of bytes such as `small`; the second command prints the threshold for a mean length, the third may
have it as --config.model.patcher.args.threshold:

    python -m experiments.entropy_model --out=runs/entropies.npy
    python -m experiments.entropy_model --model=runs/lm --mean_bytes=4.5
    python -m experiments.train_lm --config=configs/train_lm.py:patches --config.entropies=runs/lm --workdir=runs/bytes

Hardware and wall time: `smoke` under 60 s and `small` some ten minutes on 2 CPU cores; `gpu` on one GPU of 80 GB; `tpu`
on a slice of TPUs, whose chips must divide the batch of 256 rows.
"""

from __future__ import annotations

import dataclasses

from experiments.train_lm import Data, RunConfig
from jaxlm.core.errors import choose
from jaxlm.data.fill_in_middle import FillInMiddle
from jaxlm.dist.mesh import Mesh
from jaxlm.ffn.glu import Glu
from jaxlm.mixer.attention import Attention
from jaxlm.model.patcher.entropy import EntropyPatcher
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.rotary import Rotary
from jaxlm.tokenize.base import BOS, EOS, FIM, PAD
from jaxlm.tokenize.byte import ByteTokenizer
from jaxlm.train.config import TrainConfig
from jaxlm.train.optimizer import Optimizer
from jaxlm.train.schedule import Schedule

PRESETS = {
    "smoke": "2 layers of width 64, 150 steps: that everything runs (< 60 s on 2 CPU cores)",
    "small": "4 layers of width 128, 1,500 steps: Python that looks like Python, in minutes on 2 CPU cores",
    "longer": "`small`, continued on rows of 1,024 bytes with base 500,000; --config.start names the run to continue",
    "longest": "`longer`, continued on rows of 4,096 bytes; --config.start names it",
    "patches": "`small` on patches that end where the next byte is hard to tell; --config.entropies says by what",
    "infill": "`small`, half of its documents rearranged to fill in the middle (`experiments.generate --suffix`)",
    "gpu": "12 layers of width 768, bfloat16, rows of 1,024 bytes, one GPU",
    "tpu": "24 layers of width 1,024, bfloat16, rows of 2,048 bytes, parameters sharded over all chips",
}


def get_config(preset: str = "small") -> RunConfig:
    presets = {"smoke": _smoke, "small": _small, "longer": _longer, "longest": _longest, "patches": _patches}
    presets |= {"infill": _infill, "gpu": _gpu, "tpu": _tpu}
    return presets[choose("preset", preset, PRESETS)]()


def _model(width: int, layers: int, heads: int, base: float = 10_000.0, **more) -> ModelSpec:
    block = Block(mixer=Attention(heads=heads, position=Rotary(base=base)), ffn=Glu())
    return ModelSpec(
        vocab_size=ByteTokenizer().vocab_size, width=width, layers=(Group((block,), repeats=layers),), **more
    )


def _optimizer(peak: float, warmup: float) -> Optimizer:
    return Optimizer(schedule=Schedule("cosine", peak, warmup=warmup))


def _smoke() -> RunConfig:
    return RunConfig(
        model=_model(64, 2, 4),
        train=TrainConfig(steps=150, batch_size=16, optimizer=_optimizer(5e-3, 0.13), log_every=10, eval_every=75),
        data=Data(length=128),
    )


def _small() -> RunConfig:
    return RunConfig(
        model=_model(128, 4, 4),
        train=TrainConfig(steps=1500, batch_size=16, optimizer=_optimizer(3e-3, 0.07), eval_every=500, save_every=250),
        data=Data(length=256),
    )


def _longer(length: int = 1024, batch_size: int = 4) -> RunConfig:
    train = TrainConfig(steps=300, batch_size=batch_size, optimizer=_optimizer(5e-4, 0.1), eval_every=100)
    return RunConfig(model=_model(128, 4, 4, base=500_000.0), train=train, data=Data(length=length))


def _longest() -> RunConfig:
    return _longer(4096, 1)


def _patches() -> RunConfig:
    patcher = EntropyPatcher(width=128, patches_per_byte=0.4, threshold=2.2)
    small = _small()
    return dataclasses.replace(small, model=dataclasses.replace(small.model, patcher=patcher))


def _infill() -> RunConfig:
    small, tokenizer = _small(), ByteTokenizer(specials=(BOS, EOS, PAD, *FIM))
    return dataclasses.replace(
        small,
        model=dataclasses.replace(small.model, vocab_size=tokenizer.vocab_size),
        data=dataclasses.replace(small.data, tokenizer=tokenizer, fill_in_middle=FillInMiddle()),
    )


def _gpu() -> RunConfig:
    return RunConfig(
        model=_model(768, 12, 12, dtype="bfloat16"),
        train=TrainConfig(
            steps=5000, batch_size=128, optimizer=_optimizer(1e-3, 0.04), log_every=20, eval_every=500, save_every=500
        ),
        data=Data(length=1024),
    )


def _tpu() -> RunConfig:
    return RunConfig(
        model=_model(1024, 24, 16, dtype="bfloat16"),
        train=TrainConfig(
            steps=10_000,
            batch_size=256,
            optimizer=_optimizer(6e-4, 0.05),
            mesh=Mesh(data=1, fsdp=-1),
            log_every=20,
            eval_every=1000,
            save_every=500,
        ),
        data=Data(length=2048),
    )
