"""jaxlm: one functional decoder language model in JAX in which every published idea is one small file.

Names are imported on first use, so ``import jaxlm`` is cheap and ``jaxlm.tokenize`` alone never loads jax.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from jaxlm.core.versions import check_jax, check_python

check_python()

__version__ = "0.1.0"

_NAMES = {
    "Attention": "jaxlm.mixer.attention",
    "Block": "jaxlm.model.spec",
    "ConfigError": "jaxlm.core.errors",
    "CrossAttention": "jaxlm.mixer.cross_attention",
    "DeleteGate": "jaxlm.model.delete_gate",
    "EncoderDecoder": "jaxlm.model.encoder_decoder",
    "EncoderDecoderSpec": "jaxlm.model.encoder_decoder_spec",
    "Group": "jaxlm.model.spec",
    "LanguageModel": "jaxlm.model.language_model",
    "Loader": "jaxlm.data.loader",
    "ModelSpec": "jaxlm.model.spec",
    "Optimizer": "jaxlm.train.optimizer",
    "Schedule": "jaxlm.train.schedule",
    "TrainConfig": "jaxlm.train.config",
    "describe": "jaxlm.model.describe",
    "draw_positions": "jaxlm.model.language_model",
    "extend": "jaxlm.model.extend",
    "fit": "jaxlm.train.loop",
    "generate": "jaxlm.decode.generate",
    "init": "jaxlm.model.language_model",
    "init_state": "jaxlm.model.language_model",
    "load_checkpoint": "jaxlm.train.load",
    "load_hf": "jaxlm.interop.load",
    "replace": "jaxlm.model.language_model",
    "save_hf": "jaxlm.interop.save",
    "unembed": "jaxlm.model.language_model",
}

__all__ = [
    "__version__",
    "list",
    "register",
    "Attention",
    "Block",
    "ConfigError",
    "CrossAttention",
    "DeleteGate",
    "EncoderDecoder",
    "EncoderDecoderSpec",
    "Group",
    "LanguageModel",
    "Loader",
    "ModelSpec",
    "Optimizer",
    "Schedule",
    "TrainConfig",
    "describe",
    "draw_positions",
    "extend",
    "fit",
    "generate",
    "init",
    "init_state",
    "load_checkpoint",
    "load_hf",
    "replace",
    "save_hf",
    "unembed",
]


def list(slot: str) -> dict[str, str]:
    """Every registered method of a slot (``"position"``, ``"mixer"``, ``"task"``, ...) with its paper."""
    from jaxlm.core import registry

    return registry.describe(slot)


_Method = TypeVar("_Method", bound=type)


def register(slot: str, name: str) -> Callable[[_Method], _Method]:
    """A decorator that makes a method of your own known by a name, as those of the library are.

        @jaxlm.register("position", "fade")
        @dataclasses.dataclass(frozen=True)
        class Fade(PositionEncoding): ...

    Raises `ConfigError` for an unknown slot, and for a name that another method has.
    """
    from jaxlm.core import registry

    def known(cls: _Method) -> _Method:
        registry.register(slot, name, cls)
        return cls

    return known


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        check_jax()
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module 'jaxlm' has no attribute {name!r}") from None


def __dir__() -> Any:
    return sorted(__all__)


if TYPE_CHECKING:  # what type checkers and editors see
    from jaxlm.core.errors import ConfigError as ConfigError
    from jaxlm.data.loader import Loader as Loader
    from jaxlm.decode.generate import generate as generate
    from jaxlm.interop.load import load_hf as load_hf
    from jaxlm.interop.save import save_hf as save_hf
    from jaxlm.mixer.attention import Attention as Attention
    from jaxlm.mixer.cross_attention import CrossAttention as CrossAttention
    from jaxlm.model.delete_gate import DeleteGate as DeleteGate
    from jaxlm.model.describe import describe as describe
    from jaxlm.model.encoder_decoder import EncoderDecoder as EncoderDecoder
    from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec as EncoderDecoderSpec
    from jaxlm.model.extend import extend as extend
    from jaxlm.model.language_model import LanguageModel as LanguageModel
    from jaxlm.model.language_model import draw_positions as draw_positions
    from jaxlm.model.language_model import init as init
    from jaxlm.model.language_model import init_state as init_state
    from jaxlm.model.language_model import replace as replace
    from jaxlm.model.language_model import unembed as unembed
    from jaxlm.model.spec import Block as Block
    from jaxlm.model.spec import Group as Group
    from jaxlm.model.spec import ModelSpec as ModelSpec
    from jaxlm.train.config import TrainConfig as TrainConfig
    from jaxlm.train.load import load_checkpoint as load_checkpoint
    from jaxlm.train.loop import fit as fit
    from jaxlm.train.optimizer import Optimizer as Optimizer
    from jaxlm.train.schedule import Schedule as Schedule
