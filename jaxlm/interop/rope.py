"""Rotary settings in config.json, in the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5
(`rope_parameters`, which may hold one entry per layer type).

The rules are those of transformers 5.23, modeling_rope_utils, down to where a length of training is looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxlm.core import registry
from jaxlm.core.config import require
from jaxlm.core.errors import ConfigError, shown
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, at_path
from jaxlm.mixer.mla import Mla
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.rotary import Rotary
from jaxlm.position.scaling.dynamic import Dynamic
from jaxlm.position.scaling.linear import Linear
from jaxlm.position.scaling.llama3 import Llama3
from jaxlm.position.scaling.longrope import LongRope
from jaxlm.position.scaling.proportional import Proportional
from jaxlm.position.scaling.yarn import Yarn

TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim",
    "truncate", "partial_rotary_factor", "finetuned", "max_position_embeddings",
}  # fmt: skip
FRACTIONS = ("partial_rotary_factor", "rotary_pct")
BASES = ("rope_theta", "rotary_emb_base")
LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")


def settings(c: Config, layer_type: str | None = None, theta: float = 10_000.0) -> dict[str, Any]:
    """The rotary settings of a layer type (or of all) under transformers 5's names."""
    found = {**c.section("rope_scaling", default={}), **c.section("rope_parameters", default={})}
    nested = nested_types(c)
    if nested:
        found = dict(found.get(layer_type or "full_attention") or {})
    found = {key: value for key, value in found.items() if value is not None}
    odd = sorted(set(found) - KNOWN)
    if odd:
        raise ConfigError(f"config.json: rope_parameters has {odd[0]} = {shown(found[odd[0]])}, which is not supported")
    found.setdefault("rope_type", found.pop("type", "default"))
    found.setdefault("rope_theta", c.number(*BASES, default=theta))
    if (fraction := c.number(*FRACTIONS, default=None)) is not None:
        found.setdefault("partial_rotary_factor", fraction)
    return found


def nested_types(c: Config) -> list[str]:
    """The layer types that have rotary settings of their own."""
    return [key for key in c.section("rope_parameters", default={}) if key in LAYER_TYPES]


def read(
    c: Config,
    *,
    head_dim: int,
    layer_type: str | None = None,
    pairing: str = "half",
    given: Mapping[str, Any] | None = None,
) -> Rotary:
    """The encoding of a layer type. ``given`` replaces the settings of config.json.

    Raises `ConfigError` for an unknown type, a missing setting, one that cannot be, or one that changes the rotation in
    unknown ways.
    """
    try:
        return _read(c, head_dim, layer_type, pairing, given)
    except ConfigError as error:
        raise error if str(error).startswith("config.json") else ConfigError(f"config.json: {error}") from None


def _read(c: Config, head_dim: int, layer_type: str | None, pairing: str, given: Mapping[str, Any] | None) -> Rotary:
    found = settings(c, layer_type) if given is None else dict(given)
    kind = found["rope_type"]
    if kind not in TYPES:
        raise ConfigError(f"config.json: rope_type {shown(kind)} is not supported; allowed: {', '.join(TYPES)}")
    fraction = float(found.get("partial_rotary_factor", 1.0))

    def need(name: str) -> Any:
        if name not in found:
            raise ConfigError(f"config.json: rope_type {kind!r} needs {name} in rope_parameters")
        return found[name]

    def original() -> int:
        """The length of training; the top-level key comes first, as in Phi-3."""
        own = found.get("original_max_position_embeddings")
        if not nested_types(c) and "original_max_position_embeddings" in c:
            own = c.integer("original_max_position_embeddings")
        if own is None and kind == "llama3":  # transformers, too, asks for it here
            need("original_max_position_embeddings")
        return c.integer("max_position_embeddings") if own is None else int(own)

    def factor() -> float:
        given, trained = found.get("factor"), original()
        if given is None:  # nothing is known of the extension if this, too, is the length that it is compared with
            if "original_max_position_embeddings" not in found and "original_max_position_embeddings" not in c:
                need("factor")
            require(trained > 0, f"original_max_position_embeddings: expected a positive integer, got {trained}")
            given = c.integer("max_position_embeddings") / trained
        return float(given)

    scaling: Any = None
    if kind == "linear":
        scaling = Linear(float(need("factor")))
    elif kind == "dynamic":
        scaling = Dynamic(float(need("factor")), c.integer("max_position_embeddings"))
    elif kind == "yarn":
        scaling = Yarn(
            factor=factor(),
            original=original(),
            beta_fast=float(found.get("beta_fast") or 32),
            beta_slow=float(found.get("beta_slow") or 1),
            # transformers looks for it beside the layer types, not inside them
            truncate=bool(c.section("rope_parameters", default=found).get("truncate", True))
            if nested_types(c)
            else bool(found.get("truncate", True)),
            attention=float(found.get("attention_factor") or 0),
            mscale=float(found.get("mscale") or 0),
            mscale_all=float(found.get("mscale_all_dim") or 0),
        )
    elif kind == "longrope":
        lists = {name: need(name) for name in ("short_factor", "long_factor")}
        for name, divisors in lists.items():
            if not isinstance(divisors, list) or len(divisors) != int(head_dim * fraction) // 2:
                raise ConfigError(
                    f"config.json: {name} of rope_parameters should be a list of {int(head_dim * fraction) // 2} "
                    f"numbers, got {shown(divisors)}"
                )
        scaling = LongRope(
            short=tuple(map(float, lists["short_factor"])),
            long=tuple(map(float, lists["long_factor"])),
            factor=factor(),
            original=original(),
            attention=float(found.get("attention_factor") or 0),
        )
    elif kind == "llama3":
        scaling = Llama3(
            float(need("factor")), float(need("low_freq_factor")), float(need("high_freq_factor")), original()
        )
    elif kind == "proportional":
        scaling, fraction = Proportional(fraction, float(found.get("factor", 1.0))), 1.0
    return Rotary(base=float(found["rope_theta"]), fraction=fraction, pairing=pairing, scaling=scaling)


def write(rotary: Rotary) -> dict[str, Any]:
    """Settings under transformers 5's names that `read` understands.

    Raises `ConfigError` for a scaling that transformers does not have.
    """
    scaling = rotary.scaling
    out: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.base}
    if rotary.fraction != 1:
        out["partial_rotary_factor"] = rotary.fraction
    if isinstance(scaling, Linear):
        out |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Dynamic):
        out |= {"rope_type": "dynamic", "factor": scaling.factor}
    elif isinstance(scaling, Yarn):
        out |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
            "attention_factor": scaling.attention or None,
            "mscale": scaling.mscale or None,
            "mscale_all_dim": scaling.mscale_all or None,
        }
    elif isinstance(scaling, LongRope):
        out |= {
            "rope_type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original,
            "attention_factor": scaling.attention or None,
        }
    elif isinstance(scaling, Llama3):
        out |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    elif isinstance(scaling, Proportional):
        out |= {"rope_type": "proportional", "factor": scaling.factor, "partial_rotary_factor": scaling.proportion}
    elif scaling is not None:
        raise ConfigError(
            f"config.json has no rope_type for rotary scaling {registry.name_of('rotary_scaling', scaling)!r}; "
            f"allowed: {', '.join(TYPES[1:])}, or another base"
        )
    return {key: value for key, value in out.items() if value is not None}


def training_length(rotary: Rotary) -> int:
    """What `max_position_embeddings` says: the length that dynamic scaling starts from, else the extended length."""
    scaling = rotary.scaling
    if isinstance(scaling, Dynamic):
        return scaling.original
    return round(getattr(scaling, "original", 4096) * getattr(scaling, "factor", 1.0))


@dataclasses.dataclass(frozen=True)
class Rope:
    """The position encoding of every layer that turns (a family's part; the head width must be set before).

    Attributes:
      pairing: which channels make a pair.
      theta: the base where no key names one.
      fraction: the share of channels where no key names one.
      local: the key of transformers 4 with the base of sliding layers, whose rotation is then unscaled (Gemma 3).
      local_theta: that base where the key is absent.
      aliases: old names of a rope type (Phi-3 called longrope "su").
      at: where the attention is in a block; layers without a position there are passed over.
    """

    pairing: str = "half"
    theta: float = 10_000.0
    fraction: float = 1.0
    local: str = ""
    local_theta: float = 10_000.0
    aliases: tuple[tuple[str, str], ...] = ()
    at: str = "mixer"

    def read(self, c: Config, draft: Draft) -> None:
        c.integer("max_position_embeddings", default=0)  # rotations have no last position; scalings may ask for it
        c.integer("original_max_position_embeddings", default=0)
        settings(c, "full_attention", self.theta)  # unused where no layer turns (Falcon with ALiBi)
        for i, block in enumerate(draft.blocks):
            mixer = at_path(block, self.at)
            if not isinstance(getattr(mixer, "position", None), Rotary):
                continue
            given = settings(c, "sliding_attention" if is_local(mixer) else "full_attention", self.theta)
            if self.local and is_local(mixer) and not nested_types(c):
                given = {"rope_type": "default", "rope_theta": c.number(self.local, default=self.local_theta)}
            given.setdefault("partial_rotary_factor", self.fraction)
            given["rope_type"] = dict(self.aliases).get(given["rope_type"], given["rope_type"])
            head_dim = mixer.rope_dim if isinstance(mixer, Mla) else mixer.head_dim
            draft.set(f"{self.at}.position", read(c, head_dim=head_dim, pairing=self.pairing, given=given), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        by_type: dict[str, dict[str, Any]] = {}
        lengths = []
        for mixer in (at_path(block, self.at) for block in blocks):
            if isinstance(position := getattr(mixer, "position", None), Rotary):
                kind = "sliding_attention" if is_local(mixer) else "full_attention"
                by_type.setdefault(kind, write(position))
                lengths.append(training_length(position))
        out: dict[str, Any] = {"max_position_embeddings": max(lengths, default=4096)}
        distinct = list(by_type.values())
        if len(distinct) == 2 and (self.local or distinct[0] != distinct[1]):
            return {**out, "rope_parameters": by_type}
        if not distinct:
            return out
        (flat,) = distinct[:1]
        if "original_max_position_embeddings" in flat:  # Phi-3 looks for it here, and nowhere else
            out["original_max_position_embeddings"] = flat["original_max_position_embeddings"]
        scaling = {key: value for key, value in flat.items() if key not in ("rope_theta", "partial_rotary_factor")}
        out |= {"rope_parameters": flat, "rope_theta": flat["rope_theta"]}
        if "partial_rotary_factor" in flat:
            out["partial_rotary_factor"] = flat["partial_rotary_factor"]
        return out | ({"rope_scaling": scaling} if flat["rope_type"] != "default" else {})


def is_local(mixer: Any) -> bool:
    """It sees a window or a chunk only."""
    return hasattr(mixer.mask, "size")
