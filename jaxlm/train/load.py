"""A model from a checkpoint, and into one: the configuration is inside, so the folder is all it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from jaxlm.core.config import from_dict, require, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Params
from jaxlm.model.encoder_decoder import model_of
from jaxlm.model.encoder_decoder_spec import spec_of
from jaxlm.model.language_model import Model
from jaxlm.train import leaves
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.config import MIGRATIONS, VERSION, TrainConfig
from jaxlm.train.resume import check_version
from jaxlm.train.step import Trainer

CHECKPOINTS = "checkpoints"
ORIGIN = "origin"  # of an imported model: a copy of its folder without the weights, under the folder's name


def load_checkpoint(
    folder: str | os.PathLike[str], *, step: int | None = None, averaged: bool = True
) -> tuple[Any, Params]:
    """The model of a run (a `LanguageModel` or an `EncoderDecoder`) and its parameters, on the first device; adapters
    are merged.

    Parameters have the dtype they were saved in: float32, unless they were imported as something else.

    Args:
      folder: the workdir of a run, or its folder of checkpoints.
      step: a certain step; None for the newest whose files are as they were written.
      averaged: take the running averages of the parameters where the run kept them.

    Raises:
      ConfigError: in one line, if there is no good checkpoint, or one of a version that cannot be read.
    """
    checkpoints, meta = open_checkpoints(folder, step)
    origin = next((str(path.resolve()) for path in Path(folder).glob(f"{ORIGIN}/*/")), "")
    model = model_of(spec_of(meta["model"]), origin)
    config = from_dict(TrainConfig, meta["train"])
    trainer = Trainer(model.pure, None, config.optimizer, config.steps, lora=config.lora)
    state = trainer.template()
    template = _as_saved({"params": state.params}, checkpoints.read_arrays(step))
    state = state._replace(params=checkpoints.restore_part(template, step)["params"])
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


def save_checkpoint(model: Model, params: Params, folder: str | os.PathLike[str]) -> None:
    """Writes a model as a checkpoint of no run, which `load_checkpoint` reads; ``params`` stacked.

    For the parameters of an imported model: a training run saves more (`jaxlm.train.loop`), and can be continued.
    Raises `ConfigError` if it cannot be written.
    """
    meta = {"config_version": VERSION, "model": to_dict(model.spec), "train": to_dict(TrainConfig()), "run": {}}
    with Checkpointer(Path(folder) / CHECKPOINTS, asynchronous=False) as checkpoints:
        if not checkpoints.save(0, {"params": params}, meta):
            raise ConfigError(f"{folder}: the checkpoint cannot be written")


def _as_saved(template: Any, saved: dict[str, tuple[str, tuple[int, ...]]]) -> Any:
    """The template with the dtypes that were saved."""
    wanted = [
        jax.ShapeDtypeStruct(leaf.shape, saved[name][0] if name in saved else leaf.dtype, sharding=leaf.sharding)
        for name, leaf in leaves.flatten(template).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), wanted)
