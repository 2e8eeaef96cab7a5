"""A trained model from a checkpoint: the configuration is inside, so the folder is all it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxlm.core.config import from_dict, require
from jaxlm.core.types import Params
from jaxlm.model.decoder import Decoder
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import ModelSpec
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.config import MIGRATIONS, VERSION, TrainConfig
from jaxlm.train.resume import check_version
from jaxlm.train.step import Trainer

CHECKPOINTS = "checkpoints"


def load_checkpoint(
    folder: str | os.PathLike[str], *, step: int | None = None, averaged: bool = True
) -> tuple[LanguageModel, Params]:
    """The model of a run and its parameters, float32, on the first device; adapters are merged.

    Args:
      folder: the workdir of a run, or its folder of checkpoints.
      step: a certain step; None for the newest whose files are as they were written.
      averaged: take the running averages of the parameters where the run kept them.

    Raises:
      ConfigError: in one line, if there is no good checkpoint, or one of a version that cannot be read.
    """
    checkpoints, meta = open_checkpoints(folder, step)
    model = LanguageModel(from_dict(ModelSpec, meta["model"]))
    config = from_dict(TrainConfig, meta["train"])
    trainer = Trainer(Decoder(model.spec), None, config.optimizer, config.steps, lora=config.lora)
    state = trainer.template()
    state = state._replace(params=checkpoints.restore_params(state.params, step))
    if not (averaged and config.optimizer.ema_decay):
        return model, trainer.model_params(state.params)
    ema = checkpoints.restore_params({"ema": state.optimizer.ema}, step, subtree="optimizer")["ema"]
    return model, trainer.averaged(state._replace(optimizer=state.optimizer._replace(ema=ema)))


def open_checkpoints(folder: str | os.PathLike[str], step: int | None = None) -> tuple[Checkpointer, dict[str, Any]]:
    """The checkpoints of a workdir (or of its folder of checkpoints), and the metadata of one of them.

    Its ``"model"``, ``"train"`` and ``"run"`` hold the configuration. Raises `ConfigError` if there is none.
    """
    path = Path(folder)
    require(path.is_dir(), f"{path}: no such folder; expected the --workdir of a training run")
    checkpoints = Checkpointer(path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path)
    require(checkpoints.steps(), f"{path} holds no checkpoint; expected the --workdir of a run that saved one")
    return checkpoints, check_version(checkpoints.read_meta(step), VERSION, MIGRATIONS)
