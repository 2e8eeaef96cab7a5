"""Parts of settings that several families share: activations, windows, and the keys and tensors of the Llama form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.attention.mask import Causal, Chunked, Window
from jaxlm.core.errors import ConfigError, shown, unknown
from jaxlm.interop import layout
from jaxlm.interop.config import Config
from jaxlm.interop.family import Draft, Key, Keys
from jaxlm.model.spec import Block, ModelSpec
from jaxlm.position.none import NoPosition
from jaxlm.position.rotary import Rotary

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
    "quick_gelu": "quick_gelu",
    "sigmoid": "sigmoid",
    "linear": "identity",
}


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise unknown("activation in config.json", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def _hf_activation(name: str) -> str:
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == name), name)


def activation(default: Any, *also: str, paths: str | tuple[str, ...] = "ffn.activation") -> Key:
    """The key of the activation function."""
    return Key(paths, str, default, _activation, _hf_activation, also=also)


def heads_of(c: Config) -> int:
    return c.integer("num_attention_heads", "n_head", "n_heads")


def width_of(c: Config) -> int:
    return c.integer("hidden_size", "n_embd", "d_model")


def head_dim_of(c: Config) -> int:
    width, heads = width_of(c), heads_of(c)
    if heads < 1 or width % heads:
        raise ConfigError(f"config.json: hidden size {width} is not divisible by {heads} attention heads")
    return width // heads


def positive(c: Config, key: str, default: int) -> int:
    """A number that counts something, or every how many layers. Raises `ConfigError` if it is below 1."""
    if (number := c.integer(key, default=default)) < 1:
        raise ConfigError(f"config.json: {key} should be positive, got {number}")
    return number


def multiplier(path: str, default: float = 1.0) -> Key:
    """A factor."""
    return Key(path, float, default)


def divisor(path: str, default: float = 1.0) -> Key:
    """A number we multiply by the inverse of."""
    return Key(path, float, default, lambda value: 1 / value, lambda value: 1 / value)


def inverse_root(path: str, default: Any) -> Key:
    """A logit scale given as the number to divide by the square root of."""
    return Key(path, float, default, lambda value: value**-0.5, lambda scale: whole(round(scale**-2, 9)))


def multipliers() -> dict[str, Key]:
    """Granite's factors of embeddings, residuals, attention and logits."""
    return {
        "embedding_multiplier": multiplier("model.embed_multiplier"),
        "residual_multiplier": multiplier("model.residual_multiplier"),
        "attention_multiplier": multiplier("mixer.scale"),
        "logits_scaling": divisor("model.logit_multiplier"),
    }


def biases(default: bool = False, *also: str) -> Key:
    """Offsets of q, k, v and the output."""
    return Key(("mixer.qkv_bias", "mixer.out_bias"), bool, default, also=also)


def whole(value: float) -> int | float:
    """An int where there is nothing after the point; some of transformers' settings insist."""
    return int(value) if value == int(value) else value


def cap(path: str, default: Any = 0.0) -> Key:
    """A bound, soft or hard; null for none."""
    return Key(path, float, default, theirs=lambda value: value or None, null=0.0)


def parallel(form: str, default: bool) -> Key:
    """Whether attention and feed-forward run side by side."""
    return Key("residual", bool, default, lambda on: form if on else "serial", lambda residual: residual != "serial")


def tied(default: bool) -> Key:
    return Key("model.tied_head", bool, default)


def keys(
    *,
    eps: str = "rms_norm_eps",
    default_eps: Any = 1e-6,
    head_dim: Any = head_dim_of,
    tie: bool = False,
    grouped: bool = True,
    qk_norm: bool = False,
) -> Keys:
    """The settings that families after Llama have in common.

    Args:
      eps: the key of the norms' epsilon; empty for none.
      default_eps, head_dim, tie: where their keys are absent.
      grouped: whether there may be fewer key/value heads than query heads.
      qk_norm: whether the epsilon is also that of the norms of queries and keys.
    """
    groups = {"num_key_value_heads": Key("mixer.kv_heads", default=heads_of)} if grouped else {}
    norms = ("norm.eps", "mixer.qk_norm.eps") if qk_norm else "norm.eps"
    epsilon = {eps: Key(norms, float, default_eps)} if eps else {}
    return Keys(
        {
            "vocab_size": Key("model.vocab_size"),
            "hidden_size": Key("model.width"),
            "num_attention_heads": Key("mixer.heads"),
            **groups,
            "head_dim": Key("mixer.head_dim", default=head_dim),
            "intermediate_size": Key("ffn.hidden"),
            "hidden_act": activation("silu"),
            **epsilon,
            "tie_word_embeddings": tied(tie),
        }
    )


def gpt2_keys(act: str, tie: bool = True, learned: bool = True) -> Keys:
    """The settings of GPT-2, in its spelling; without ``learned`` positions, those of GPT-J."""
    own = {
        "n_positions": Key("mixer.position.size", default=1024, also=("max_position_embeddings", "n_ctx")),
        "scale_attn_weights": Key("mixer.scale", bool, True, lambda on: 0.0 if on else 1.0, lambda scale: scale != 1),
    }
    return Keys(
        {
            "vocab_size": Key("model.vocab_size"),
            "n_embd": Key("model.width", also=("hidden_size",)),
            "n_head": Key("mixer.heads", also=("num_attention_heads",)),
            **(own if learned else {"scale_attn_weights": Key((), bool, True)}),  # GPT-J scales whatever it says
            "n_inner": Key("ffn.hidden", default=lambda c: 4 * width_of(c)),
            "activation_function": activation(act),
            "layer_norm_epsilon": Key("norm.eps", float, 1e-5),
            "tie_word_embeddings": tied(tie),
        }
    )


LAYER = "model.layers.{layer}."


def ends(norm: str = "model.norm") -> dict[str, layout.Layout]:
    return layout.ends("model.embed_tokens", norm, "lm_head")


def projections(out: str = "o_proj") -> dict[str, layout.Layout]:
    at = LAYER + "self_attn."
    return layout.attention(at + "q_proj", at + "k_proj", at + "v_proj", at + out)


def gated() -> dict[str, layout.Layout]:
    return layout.glu(LAYER + "mlp.gate_proj", LAYER + "mlp.up_proj", LAYER + "mlp.down_proj")


def fused_gated(
    both: str = LAYER + "mlp.gate_up_proj", down: str = LAYER + "mlp.down_proj", ours: str = "ffn"
) -> dict[str, layout.Layout]:
    """A gated unit whose gate and up part are one tensor, after one another."""
    gate, up = (layout.Piece("D F", "F D", np.s_[..., i]) for i in (0, 1))
    return {
        f"{ours}/in": layout.piecewise(f"{both}.weight", gate, up),
        f"{ours}/out": layout.transposed(f"{down}.weight"),
    }


def pre_norms() -> dict[str, layout.Layout]:
    return {
        **layout.norm("mixer_norm", LAYER + "input_layernorm"),
        **layout.norm("ffn_norm", LAYER + "post_attention_layernorm"),
    }


def sandwich_norms() -> dict[str, layout.Layout]:
    return {
        **layout.norm("mixer_norm", LAYER + "input_layernorm"),
        **layout.norm("mixer_out_norm", LAYER + "post_attention_layernorm"),
        **layout.norm("ffn_norm", LAYER + "pre_feedforward_layernorm"),
        **layout.norm("ffn_out_norm", LAYER + "post_feedforward_layernorm"),
    }


def output_norms() -> dict[str, layout.Layout]:
    return {
        **layout.norm("mixer_out_norm", LAYER + "post_attention_layernorm"),
        **layout.norm("ffn_out_norm", LAYER + "post_feedforward_layernorm"),
    }


def qk_norms(q: str = "q_norm", k: str = "k_norm") -> dict[str, layout.Layout]:
    return {
        **layout.norm("mixer/q_norm", f"{LAYER}self_attn.{q}"),
        **layout.norm("mixer/k_norm", f"{LAYER}self_attn.{k}"),
    }


def joint_qk_norms() -> dict[str, layout.Layout]:
    """Gains of queries and keys, over the channels of all heads together."""
    return {
        "mixer/q_norm/scale": layout.piecewise(LAYER + "self_attn.q_norm.weight", layout.Piece("G R K", "(G R K)")),
        "mixer/k_norm/scale": layout.piecewise(LAYER + "self_attn.k_norm.weight", layout.Piece("G K", "(G K)")),
    }


def tensors() -> dict[str, layout.Layout]:
    """Llama's tensors."""
    return {**ends(), **pre_norms(), **projections(), **gated()}


class RotaryDim:
    """The number of channels that turn (GPT-J); the share of them is what a rotary encoding holds."""

    def read(self, c: Config, draft: Draft) -> None:
        draft.set("mixer.position.fraction", c.integer("rotary_dim", default=64) / head_dim_of(c))
        for key in ("n_positions", "n_ctx"):
            c.integer(key, default=2048)  # rotations have no last position

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        mixer = blocks[0].mixer
        return {"rotary_dim": round(mixer.position.fraction * mixer.head_dim), "n_positions": 2048}


@dataclasses.dataclass(frozen=True)
class ScaledEmbedding:
    """Embeddings times sqrt(width), which no key says.

    Attributes:
      dtype: that the factor is rounded to, whatever the model's.
    """

    dtype: str = "float64"

    def read(self, c: Config, draft: Draft) -> None:
        draft.set("model.embed_multiplier", float(np.asarray(width_of(c) ** 0.5, jnp.dtype(self.dtype))))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class HeadNorms:
    """A flag for norms of queries and keys, with the block's epsilon (read before).

    Attributes:
      key: of config.json.
      norm: their kind.
      default: where the key is absent.
    """

    key: str
    norm: Any
    default: bool = False

    def read(self, c: Config, draft: Draft) -> None:
        if c.flag(self.key, default=self.default):
            draft.set("mixer.qk_norm", dataclasses.replace(self.norm, eps=draft.blocks[0].norm.eps))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {self.key: blocks[0].mixer.qk_norm is not None}


@dataclasses.dataclass(frozen=True)
class NoPositions:
    """Which layers have no position encoding.

    Attributes:
      where: whether layer i with this block (windows read before) has none.
      key: the key that lists 1 for layers with positions and 0 for those without, if there is one.
    """

    where: Callable[[Config, int, Block], bool]
    key: str = ""

    def read(self, c: Config, draft: Draft) -> None:
        listed = (c.sequence(self.key, default=[]) if self.key else []) or draft.blocks
        if len(listed) != len(draft.blocks):
            raise ConfigError(f"config.json: {self.key} has {len(listed)} entries for {len(draft.blocks)} layers")
        for i, block in enumerate(draft.blocks):
            if self.where(c, i, block):
                draft.set("mixer.position", NoPosition(), i)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        has = [int(isinstance(block.mixer.position, Rotary)) for block in blocks]
        return {self.key: has} if self.key else {}


def without_positions(c: Config, layer: int) -> bool:
    """Whether a layer has none: listed as 0, or every so many."""
    listed = c.sequence("no_rope_layers", default=[])
    if not listed:
        return (layer + 1) % positive(c, "no_rope_layer_interval", 4) == 0
    return layer < len(listed) and not listed[layer]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which layers see a window of the nearest keys only.

    Attributes:
      local: whether layer i of those of a config.json without ``layer_types`` does.
      listed: whether the family has ``layer_types``; without, a window is for all layers.
      switch: the flag that turns windows on, where the family has one.
      size: the window where config.json does not say.
      counted: whether a key counts the layers below those with windows (Qwen).
    """

    local: Callable[[Config, int], bool] = lambda c, i: True
    listed: bool = True
    switch: str = ""
    size: Any = None
    counted: bool = True

    def read(self, c: Config, draft: Draft) -> None:
        size = c.look_up("sliding_window", int, self.size, null=None)
        on = (not self.switch or c.flag(self.switch, default=False)) and bool(size)
        kinds = c.sequence("layer_types", default=None) if self.listed else None
        depth = len(draft.blocks)
        if kinds is None:
            kinds = ["sliding_attention" if on and self.local(c, i) else "full_attention" for i in range(depth)]
        if len(kinds) != depth:
            raise ConfigError(f"config.json: layer_types has {len(kinds)} entries for {depth} layers")
        for i, kind in enumerate(kinds):
            if kind == "sliding_attention":
                if not size:
                    raise ConfigError(f"config.json: layer_types[{i}] is {kind!r} but there is no sliding_window")
                draft.set("mixer.mask", Window(size), i)
            elif kind == "chunked_attention":
                draft.set("mixer.mask", Chunked(c.integer("attention_chunk_size")), i)
            elif kind != "full_attention":
                raise ConfigError(
                    f"config.json: layer_types[{i}] = {shown(kind)} is not supported; allowed: full_attention, "
                    "sliding_attention, chunked_attention"
                )

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        masks = [block.mixer.mask for block in blocks]
        size = next((mask.size for mask in masks if isinstance(mask, Window)), None)
        out: dict[str, Any] = {"sliding_window": size if size or not self.listed else self.size}
        if self.switch:
            out[self.switch] = size is not None
        if self.switch and self.counted:
            out["max_window_layers"] = next((i for i, m in enumerate(masks) if isinstance(m, Window)), len(masks))
        if self.listed:
            names = {Window: "sliding_attention", Chunked: "chunked_attention", Causal: "full_attention"}
            out["layer_types"] = [names[type(mask)] for mask in masks]
        if chunk := next((mask.size for mask in masks if isinstance(mask, Chunked)), None):
            out["attention_chunk_size"] = chunk
        return out
