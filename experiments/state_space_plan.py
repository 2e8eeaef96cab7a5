"""What `experiments.state_space` compares: arms (a model on a task), learning rates, and settings at inference."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from experiments.state_space_mixers import ForgetfulMamba2
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import choose
from jaxlm.mixer.mamba2 import Mamba2
from jaxlm.mixer.recurrent import Recurrent
from jaxlm.model import decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.train.optimizer import Optimizer

STUDIES = (
    "recall", "copying", "tracing", "collapse", "passkey", "long_range", "list_ops", "verbatim", "translation",
)  # fmt: skip
CONDITIONS = ("repeat", "permute", "novel")  # of the second list of a vignette


@dataclasses.dataclass(frozen=True)
class Setting(Spec):
    """How a trained Mamba-2 is read: what `ForgetfulMamba2` changes, and whether it starts anew with each episode.

    Attributes:
      label: its name in tables, figures and results.csv.
      forget, remember, window, limit: of `ForgetfulMamba2`.
      reset: whether the state is set to zero where an episode begins, by segment ids; the control.
    """

    label: str = "unchanged"
    forget: float = 1.0
    remember: float = 1.0
    window: int = 0
    limit: float = 0.0
    reset: bool = False

    def check(self) -> None:
        self.mixer(Mamba2())

    def mixer(self, trained: Mamba2) -> ForgetfulMamba2:
        """The mixer with the same parameters and these changes. Raises `ConfigError` for what does not go together."""
        fields = {field.name: getattr(trained, field.name) for field in dataclasses.fields(trained)}
        changes = {"forget": self.forget, "remember": self.remember, "window": self.window, "limit": self.limit}
        return ForgetfulMamba2(**{**fields, **changes})

    def model(self, spec: ModelSpec) -> ModelSpec:
        """The model with every Mamba-2 in it so changed."""

        def changed(block: Block) -> Block:
            mixer = block.mixer
            return dataclasses.replace(block, mixer=self.mixer(mixer)) if type(mixer) is Mamba2 else block

        groups = (dataclasses.replace(group, pattern=tuple(map(changed, group.pattern))) for group in spec.layers)
        return dataclasses.replace(spec, layers=tuple(groups))


@dataclasses.dataclass(frozen=True)
class Arm(Spec):
    """A model on a task.

    Attributes:
      label: its name in tables, figures and results.csv.
      part: of the study; arms of a part share a panel.
      task: with the lengths it is trained on.
      model: everything about it.
      steps: of training.
      batch_size: examples per step.
      packed: rows and places that the examples of a step are packed into (`jaxlm.data.batch.pack_batch`; those that do
        not fit are left out); () for a row each.
      lengths: at which it is read, of those the task has.
    """

    label: str = "attention"
    part: str = "all"
    task: Any = slot("task", "copy_rsc")
    model: ModelSpec = ModelSpec()
    steps: int = 1000
    batch_size: int = 32
    packed: tuple[int, ...] = ()
    lengths: tuple[int, ...] = (10,)

    def check(self) -> None:
        who = f"arm {self.label!r}"
        require(min(self.steps, self.batch_size) > 0, f"{who}: steps and batch_size must be positive")
        require(
            not self.packed or (len(self.packed) == 2 and min(self.packed) > 0 and self.causal),
            f"{who}: packed: expected rows and places, and a causal model, got {self.packed}",
        )
        longest = self.task.tokens_bound(self.task.train_lengths[1]) - 1
        require(
            not self.packed or self.packed[1] >= longest,
            f"{who}: packed: the longest example needs {longest} places, got {self.packed}",
        )
        low = min(self.task.train_lengths[0], self.task.eval_lengths[0])
        high = max(self.task.train_lengths[1], self.task.eval_lengths[1])
        require(
            self.lengths and low <= min(self.lengths) and max(self.lengths) <= high,
            f"{who}: lengths: the task has {low}..{high}, got {self.lengths}",
        )
        size = self.task.vocab_size
        require(
            size <= self.model.vocab_size,
            f"{who}: model.vocab_size {self.model.vocab_size} is smaller than the task's {size}",
        )
        decoder.param_specs(self.model)  # widths that do not divide are found here
        limit, need = decoder.max_positions(self.model), self.task.places_bound(max(self.lengths))
        require(limit is None or need <= limit, f"{who}: represents {limit} positions; the longest test has {need}")

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for group in self.model.layers for block in group.pattern)

    @property
    def causal(self) -> bool:
        return all(block.mixer.causal for block in self.blocks)

    @property
    def state_floats(self) -> int:
        """What the first layer remembers of a row, convolutions aside; 0 where that grows with the row."""
        mixer = self.blocks[0].mixer
        if not isinstance(mixer, Recurrent):
            return 0
        return sum(math.prod(shape) for shape in mixer.memory(decoder.dims_of(self.model)).values())


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    """One study.

    Attributes:
      study: what is measured and claimed, one of `STUDIES`.
      arms: what is compared.
      rates: learning rates; with several, each is tried with the first seed, and the best of them serves all seeds.
      seeds: of initial values and data order.
      optimizer: its schedule's peak is replaced by the rates.
      settings: of a trained Mamba-2 at inference, for the study of collapse; the first must be unchanged.
      gaps: words between the lists of a vignette, for the study of verbatim memory.
      readings: evenly spaced times in training at which arms are read; 1 for the end alone.
      eval_examples: per length.
      eval_rows: of those, at a time.
      steps_per_call: training steps fused into one call of the device.
      workers: arms trained at the same time; 0 for one per core on a CPU and one elsewhere.
    """

    study: str = "recall"
    arms: tuple[Arm, ...] = (Arm(),)
    rates: tuple[float, ...] = (1e-3,)
    seeds: tuple[int, ...] = (0,)
    optimizer: Optimizer = Optimizer()
    settings: tuple[Setting, ...] = (Setting(),)
    gaps: tuple[int, ...] = (25,)
    readings: int = 1
    eval_examples: int = 128
    eval_rows: int = 64
    steps_per_call: int = 50
    workers: int = 0

    def check(self) -> None:
        choose("RunConfig.study", self.study, STUDIES)
        names = [(arm.part, arm.label) for arm in self.arms]
        require(len(set(names)) == len(names) > 0, f"RunConfig.arms: labels of a part must differ, got {sorted(names)}")
        labels = [setting.label for setting in self.settings]
        require(
            len(set(labels)) == len(labels) > 0 and self.settings[0] == Setting(labels[0]),
            f"RunConfig.settings: expected labels that differ, the first one's setting unchanged, got {labels}",
        )
        for name in ("rates", "seeds"):
            values = getattr(self, name)
            require(len(set(values)) == len(values) > 0, f"RunConfig.{name}: expected distinct {name}, got {values}")
        require(min(self.rates) > 0, f"RunConfig.rates: expected positive learning rates, got {self.rates}")
        sizes = (self.readings, self.eval_examples, self.eval_rows, self.steps_per_call)
        require(min(sizes) > 0, "RunConfig: readings, eval_examples, eval_rows and steps_per_call must be positive")
        for arm in self.arms if len(self.settings) > 1 else ():
            require(
                any(type(block.mixer) is Mamba2 for block in arm.blocks),
                f"arm {arm.label!r}: settings change mixers 'mamba2', and it has none",
            )


def stack(block: Block, vocab_size: int, *, width: int = 64, layers: int = 2, **more: Any) -> ModelSpec:
    """The model of all studies: blocks of one kind, tied embeddings."""
    fields = {"tied_head": True, "remat": "none", **more}
    return ModelSpec(vocab_size=vocab_size, width=width, layers=(Group((block,), layers),), **fields)
