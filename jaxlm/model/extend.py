"""Longer contexts without training: one name for each published way, on any model with rotary positions.

    longer = jaxlm.extend(model, "yarn", factor=4, original=8192)

The parameters are the model's own. Each way changes frequencies (a scaling), distances (another encoding around the
rotary one), what is seen (a mask), or how sharp attention is; the paper stands at the file of the part it uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.attention.mask import Window
from jaxlm.cache.window_sink import WindowSink
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, choose
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.spec import Block, map_mixers
from jaxlm.position.lm_infinite import LmInfinite
from jaxlm.position.log_n import LogN
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.dynamic import Dynamic
from jaxlm.position.scaling.linear import Linear
from jaxlm.position.scaling.llama3 import Llama3
from jaxlm.position.scaling.ntk import Ntk
from jaxlm.position.scaling.power import Power
from jaxlm.position.scaling.truncated import Truncated
from jaxlm.position.scaling.yarn import Yarn
from jaxlm.position.self_extend import SelfExtend
from jaxlm.position.streaming import Streaming

SINKS = 4  # first tokens that stay visible, StreamingLLM's choice


class Extension(NamedTuple):
    """What becomes of an attention layer: its position encoding, and its mask if that changes too."""

    position: Any
    mask: Any = None


def _scaled(scaling: Callable[[int, float], Any]) -> Callable[[Rotary, int, float], Extension]:
    def extended(rotary: Rotary, original: int, factor: float) -> Extension:
        if rotary.scaling is not None:
            raise ConfigError(
                f"extend: the rotary encoding has scaling {type(rotary.scaling).__name__} already; allowed then: "
                + ", ".join(name for name, way in METHODS.items() if way.around)
            )
        return Extension(dataclasses.replace(rotary, scaling=scaling(original, factor)))

    return extended


def _with_mask(position: Any) -> Extension:
    return Extension(position, position.mask())


class Way(NamedTuple):
    """One way to a longer context.

    Attributes:
      apply: ``apply(rotary, original, factor)``, for ``original`` tokens of training and ``factor`` times as many.
      what: in a few words.
      around: it goes around a rotary encoding that has a scaling already.
      constant: it reads a bounded number of keys, so that `cache` is constant too.
    """

    apply: Callable[[Rotary, int, float], Extension]
    what: str
    around: bool = False
    constant: bool = False


METHODS: dict[str, Way] = {
    "none": Way(lambda rotary, n, s: Extension(rotary), "as trained", around=True),
    "linear": Way(_scaled(lambda n, s: Linear(s)), "position interpolation"),
    "ntk": Way(_scaled(lambda n, s: Ntk(s)), "a larger base"),
    "dynamic": Way(_scaled(lambda n, s: Dynamic(2.0, n)), "a base that grows with the context"),
    "yarn": Way(_scaled(lambda n, s: Yarn(s, n)), "slow pairs interpolated, sharper attention"),
    "yarn_plain": Way(_scaled(lambda n, s: Yarn(s, n, attention=1.0)), "YaRN without its temperature"),
    "llama3": Way(_scaled(lambda n, s: Llama3(s, original=n)), "slow pairs divided, a blend between"),
    "power": Way(_scaled(lambda n, s: Power(exponent=0.5)), "Giraffe's power basis"),
    "truncated": Way(_scaled(lambda n, s: Truncated(original=n)), "Giraffe's truncated basis"),
    "log_n": Way(lambda rotary, n, s: Extension(LogN(rotary, original=n)), "sharper queries further on", around=True),
    "ntk_log_n": Way(
        lambda rotary, n, s: Extension(LogN(METHODS["ntk"].apply(rotary, n, s).position, original=n)),
        "the two together",
    ),
    "self_extend": Way(
        lambda rotary, n, s: Extension(SelfExtend(rotary, window=max(1, n // 4), group=math.ceil(2 * s))),
        "exact positions near, grouped ones far",
        around=True,
    ),
    "lm_infinite": Way(
        lambda rotary, n, s: _with_mask(LmInfinite(rotary, local=n, sinks=SINKS, limit=n)),
        "a window, the first tokens, a ceiling of distances",
        around=True,
        constant=True,
    ),
    "streaming": Way(
        lambda rotary, n, s: _with_mask(Streaming(rotary, sinks=SINKS, window=n - SINKS)),
        "a window and the first tokens, positions within the cache",
        around=True,
        constant=True,
    ),
    "window": Way(lambda rotary, n, s: Extension(rotary, Window(n)), "a window alone", around=True, constant=True),
}


def extend(model: LanguageModel, method: str, *, factor: float, original: int) -> LanguageModel:
    """The model with a longer context, for the same parameters.

    Args:
      model: with rotary positions in all layers that have any.
      method: one of `METHODS`.
      factor: the longer context over that of training; ways that follow the text's length ignore it.
      original: the length of training, in tokens.

    Raises:
      ConfigError: an unknown method, a factor below 1, a length that is not positive, a model without a rotary layer,
        or one whose rotary encoding has a scaling already where the method is another.
    """
    way = METHODS[choose("extension method", method, METHODS)]
    require(factor >= 1, f"extend: factor {factor} is below 1; allowed: 1 or more")
    require(original > SINKS, f"extend: original {original}, the length of training, is not above {SINKS}")
    found = 0

    def extended(mixer: Any) -> Any:
        nonlocal found
        rotary = getattr(mixer, "position", None)
        if not isinstance(rotary, Rotary):
            return mixer
        found += 1
        new = way.apply(rotary, original, factor)
        changes = {"position": new.position} | ({} if new.mask is None else {"mask": new.mask})
        return dataclasses.replace(mixer, **changes)

    def block(b: Block) -> Block:
        return dataclasses.replace(b, mixer=map_mixers(extended, b.mixer))

    groups = tuple(dataclasses.replace(g, pattern=tuple(map(block, g.pattern))) for g in model.spec.layers)
    require(found, f"extend: method {method!r} is for rotary positions, and no layer of the model has them")
    return LanguageModel(dataclasses.replace(model.spec, layers=groups), origin=model.origin)


def cache(method: str, original: int) -> Any:
    """The cache policy that goes with a method: constant where it reads a bounded number of keys, else full."""
    way = METHODS[choose("extension method", method, METHODS)]
    if not way.constant:
        return "full"
    if method == "lm_infinite":
        return WindowSink(SINKS, original)
    return WindowSink(SINKS, original - SINKS) if method == "streaming" else WindowSink(0, original)
