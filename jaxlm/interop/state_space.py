"""Parts of settings and tensors that families with recurrent layers share: Mamba, Mamba-2, which layers are which."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.core import registry
from jaxlm.core.errors import ConfigError, shown
from jaxlm.core.types import Dims
from jaxlm.interop import layout
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Key, Keys, Only, found_at
from jaxlm.interop.layout import Piece, piecewise, plain, transposed
from jaxlm.interop.parts import positive, tied, whole
from jaxlm.model.spec import Block, ModelSpec

REVERSED = np.s_[::-1]  # a convolution's current token is last as stored, first in ours


def taps(name: str) -> layout.Layout:
    """A convolution of channels on their own."""
    return piecewise(name, Piece("N C", "C () N", REVERSED))


def mamba(at: str, norms: tuple[str, str, str] = ("", "", ""), ours: str = "mixer") -> dict[str, layout.Layout]:
    """Mamba's tensors under the prefix ``at``; ``norms`` of the step sizes, B and C, where it has any."""
    out = {
        "in": piecewise(f"{at}in_proj.weight", Piece("D S C", "(S C) D")),
        "in_bias": piecewise(f"{at}in_proj.bias", Piece("S C", "(S C)")),
        "conv": taps(f"{at}conv1d.weight"),
        "conv_bias": plain(f"{at}conv1d.bias"),
        "x": transposed(f"{at}x_proj.weight"),
        "dt": transposed(f"{at}dt_proj.weight"),
        "dt_bias": plain(f"{at}dt_proj.bias"),
        "a_log": plain(f"{at}A_log"),
        "skip": plain(f"{at}D"),
        "out": transposed(f"{at}out_proj.weight"),
        "out_bias": plain(f"{at}out_proj.bias"),
        **{
            f"{name}_norm/scale": plain(f"{at}{norm}.weight")
            for name, norm in zip(("dt", "b", "c"), norms, strict=True)
        },
    }
    return {f"{ours}/{name}": stored for name, stored in out.items()}


def mamba2(mixer: Any, width: int, at: str, ours: str = "mixer") -> dict[str, layout.Layout]:
    """The tensors of a Mamba-2 mixer in a model of that width, under the prefix ``at``: its projections are one tensor
    in the order z, x, b, c, dt, and so are its convolutions, of x, b and c."""
    shapes = {name: spec.shape for name, spec in mixer.params(Dims(width)).items()}
    axes = {"z": "H P", "x": "H P", "b": "G N", "c": "G N", "dt": "H"}
    rows = {name: math.prod(shapes[name][1:]) for name in axes}
    convolved = [(name, rows[name], axes[name]) for name in ("x", "b", "c")]
    out = {
        **layout.shared(f"{at}in_proj.weight", [(n, rows[n], Piece(f"D {a}", f"({a}) D")) for n, a in axes.items()]),
        **layout.shared(f"{at}in_proj.bias", [(f"in_{n}_bias", rows[n], Piece(a, f"({a})")) for n, a in axes.items()]),
        **layout.shared(
            f"{at}conv1d.weight", [(f"conv_{n}", r, Piece(f"T {a}", f"({a}) () T", REVERSED)) for n, r, a in convolved]
        ),
        **layout.shared(f"{at}conv1d.bias", [(f"conv_{n}_bias", r, Piece(a, f"({a})")) for n, r, a in convolved]),
        "a_log": plain(f"{at}A_log"),
        "dt_bias": plain(f"{at}dt_bias"),
        "skip": plain(f"{at}D"),
        "norm": piecewise(f"{at}norm.weight", Piece("H P", "(H P)")),
        "out": piecewise(f"{at}out_proj.weight", Piece("H P D", "D (H P)")),
        "out_bias": plain(f"{at}out_proj.bias"),
    }
    return {f"{ours}/{name}": stored for name, stored in out.items()}


BACKBONE = "backbone.layers.{layer}."


def backbone() -> dict[str, layout.Layout]:
    """What is around the mixers of Mamba's family."""
    return {
        **layout.ends("backbone.embeddings", "backbone.norm_f", "lm_head"),
        **layout.norm("mixer_norm", BACKBONE + "norm"),
    }


OLD_NAMES = {r"\bembedding\.": "embeddings."}  # of files older than transformers' port


def first_of(spec: ModelSpec, mixer: str) -> Any:
    """The first mixer registered by that name; None if there is none."""
    found = (block.mixer for group in spec.layers for block in group.pattern)
    return next((one for one in found if registry.name_of("mixer", one) == mixer), None)


def mamba2_layers(spec: ModelSpec, at: str) -> dict[str, layout.Layout]:
    """`mamba2` of the layers that are, in a model where others may not be."""
    mixer = first_of(spec, "mamba2")
    return {} if mixer is None else layout.only("mamba2", mamba2(mixer, spec.width, at))


def unused(**defaults: Any) -> dict[str, Key]:
    """Keys that change nothing about a trained network: initial values, and how to compute."""
    return {name: Key((), (int, float, str, bool, list), default) for name, default in defaults.items()}


# Initial step sizes, the residual stream's dtype (float32 sums of what the model's dtype gives), and how to compute.
INITIAL = unused(
    time_step_scale=1.0, time_step_min=0.001, time_step_max=0.1, time_step_init_scheme="random", time_step_floor=1e-4,
    rescale_prenorm_residual=False, residual_in_fp32=True, use_mambapy=False, use_associative_scan=True,
    use_falcon_mambapy=False, use_mamba_kernels=True, num_logits_to_keep=1, z_loss_coefficient=0.0, chunk_size=256,
    mamba_chunk_size=256,
)  # fmt: skip


def rank(path: str) -> Key:
    """The way from channels to step sizes: a number, or "auto" for a sixteenth of the model's width (0 to us)."""

    def ours(value: int | str) -> int:
        if isinstance(value, str) and value != "auto":
            raise ConfigError(f"a rank of time steps should be a number or 'auto', got {shown(value)}")
        return 0 if isinstance(value, str) else value

    return Key(path, (int, str), "auto", ours)


INFINITE = {"__float__": "Infinity"}


def step_limit(path: str) -> Key:
    """The least and the greatest step; JSON has no infinity, so transformers 5 writes an object for it."""

    def ours(value: list[Any]) -> tuple[float, float]:
        ends = [math.inf if end == INFINITE else end for end in value]
        if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
            raise ConfigError(f"time_step_limit should be two numbers, got {shown(value)}")
        return float(ends[0]), float(ends[1])

    def theirs(limit: tuple[float, float]) -> list[Any]:
        return [INFINITE if end == math.inf else end for end in limit]

    return Key(path, list, lambda c: [0.0, math.inf], ours, theirs)


def mamba_keys() -> Keys:
    """The settings that Mamba and Falcon Mamba have in common."""
    return Keys(
        {
            "vocab_size": Key("model.vocab_size", default=50280),
            "hidden_size": Key("model.width", default=768),
            "state_size": Key("mixer.state", default=16),
            "expand": Key("mixer.expand", (int, float), 2, float, whole),
            "conv_kernel": Key("mixer.conv", default=4),
            "time_step_rank": rank("mixer.dt_rank"),
            "use_bias": Key("mixer.bias", bool, False),
            "use_conv_bias": Key("mixer.conv_bias", bool, True),
            "layer_norm_epsilon": Key("norm.eps", float, 1e-5),
            "tie_word_embeddings": tied(True),
            "intermediate_size": Key((), default=0),  # what expand makes of the width
            **INITIAL,
        }
    )


SILU = Only("hidden_act", ("silu",), "it belongs to the layer")


def periodic(chosen: Sequence[bool]) -> tuple[int, int]:
    """The period and the offset of those chosen. Raises `ConfigError` if they are not every so many."""
    depth = len(chosen)
    for period in range(1, depth + 2):
        for offset in range(period):
            if all((i % period == offset) == one for i, one in enumerate(chosen)):
                return period, offset
    raise ConfigError("its layers of a kind are not every so many")


def every(c: Config, period: str, offset: str, default: tuple[int, int], depth: int) -> list[bool]:
    """Which layers are chosen by two keys. Raises `ConfigError` for an offset that is not below the period."""
    size, first = positive(c, period, default[0]), c.integer(offset, default=default[1])
    if not 0 <= first < size:
        raise ConfigError(f"config.json: {offset} should be below {period} {size}, got {first}")
    return [i % size == first for i in range(depth)]


@dataclasses.dataclass(frozen=True)
class Width:
    """How wide Mamba-2's heads are together, which several keys say.

    Attributes:
      heads, head_dim: the keys of the number of heads and the width of one, which may be "auto".
      expand: the key of their width over the model's; empty if it does not count.
      inner: the key of their width, which comes first; empty for none.
      at: the mixer's path.
    """

    heads: str
    head_dim: str
    expand: str = ""
    inner: str = ""
    at: str = "mamba2"

    def read(self, c: Config, draft: Draft) -> None:
        width, heads = draft.model["width"], c.integer(self.heads, default=128)
        head_dim = c.look_up(self.head_dim, (int, str), 64)
        expand = c.integer(self.expand, default=2) if self.expand else 0
        inner = c.integer(self.inner, default=0) if self.inner else 0
        inner = inner or expand * width or heads * (head_dim if isinstance(head_dim, int) else 0)
        if head_dim == "auto":
            head_dim = inner // max(heads, 1)
        if heads < 1 or not isinstance(head_dim, int) or heads * head_dim != inner or not inner:
            raise ConfigError(
                f"config.json: {self.heads} = {heads} heads of {self.head_dim} = {shown(head_dim)} are not the "
                f"{self.inner or f'{self.expand} x hidden_size'} = {inner} channels of the layer"
            )
        draft.set(f"{self.at}.head_dim", head_dim)
        draft.set(f"{self.at}.expand", inner / width)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        head_dim, expand = (found_at(spec, blocks, f"{self.at}.{field}") for field in ("head_dim", "expand"))
        if head_dim is None:
            return {}
        inner = round(expand * spec.width)
        out = {self.heads: inner // head_dim, self.head_dim: head_dim}
        out |= {self.inner: inner} if self.inner else {}
        return out | ({self.expand: whole(expand)} if self.expand and not self.inner else {})
