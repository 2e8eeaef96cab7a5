"""What a model is: blocks, groups of blocks that are scanned, and the few numbers around them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Self

from jaxlm.attention.mask import Bidirectional
from jaxlm.core import config
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.errors import ConfigError, choose
from jaxlm.model.head import HeadTransform

VERSION = 1

REMAT = ("none", "full", "dots", "dots_no_batch")


@dataclasses.dataclass(frozen=True)
class Block(Spec):
    """One layer: a sequence mixer and a feed-forward, each with its norms and residual.

    Attributes:
      mixer: how tokens exchange information.
      ffn: what happens to each token; None for none (Mamba).
      norm: the kind of normalisation.
      placement: ``"pre"`` x + f(norm(x)); ``"post"`` norm(x + f(x)) (the original transformer, BERT); ``"sandwich"``
        x + norm(f(norm(x))) (Gemma 2); ``"output"`` x + norm(f(x)) (OLMo 2); ``"normed"`` n + f(n) with n = norm(x)
        (BLOOM's option); ``"none"`` x + f(x), of a mixer that norms for itself; ``"pre_ffn"`` x + f(x), then as pre
        (the first layer of ModernBERT, whose embeddings are normed already).
      residual: ``"serial"``; ``"parallel"`` x + mixer(norm1(x)) + ffn(norm2(x)) (GPT-NeoX); ``"parallel_shared"`` with
        one norm for both (GPT-J, PaLM). The parallel forms need placement ``"pre"``.
      share: blocks of the same name have their parameters once (Universal Transformer, ALBERT), but for those that a
        part declares each layer's own; empty for none shared.
    """

    mixer: Any = slot("mixer", "attention")
    ffn: Any = slot("ffn", "mlp", optional=True)
    norm: Any = slot("norm", "rms")
    placement: str = "pre"
    residual: str = "serial"
    share: str = ""

    def check(self) -> None:
        choose("Block.placement", self.placement, ("pre", "post", "sandwich", "output", "normed", "none", "pre_ffn"))
        choose("Block.residual", self.residual, ("serial", "parallel", "parallel_shared"))
        require("/" not in self.share, f"Block.share: expected a name without '/', got {self.share!r}")
        require(
            self.residual == "serial" or (self.placement == "pre" and self.ffn is not None),
            f"Block.residual {self.residual!r} needs placement 'pre' and an ffn",
        )


def mixers_of(mixer: Any) -> tuple[Any, ...]:
    """The mixers that a mixer is made of, or itself."""
    inner = getattr(mixer, "inner", None)
    return (mixer,) if inner is None else tuple(one for part in inner for one in mixers_of(part))


def map_mixers(change: Callable[[Any], Any], mixer: Any) -> Any:
    """A mixer with ``change`` made to each of the mixers that it is made of, or to itself."""
    slots = [field.name for field in dataclasses.fields(mixer) if field.metadata.get("slot") == "mixer"]
    if not slots:
        return change(mixer)
    return dataclasses.replace(mixer, **{name: map_mixers(change, getattr(mixer, name)) for name in slots})


def _sees_a_set(mixer: Any) -> bool:
    """The mixer is attention that cannot tell one order of its tokens from another."""
    position = getattr(mixer, "position", None)
    return isinstance(getattr(mixer, "mask", None), Bidirectional) and position is not None and not position.says_where


def hands_on(group: Group) -> bool:
    """A mixer of the group has something for later layers to read (`Context.handed`)."""
    return any(getattr(block.mixer, "hands_on", False) for block in group.pattern)


class _Traced:
    """Stands for a traced number, to learn before anything compiles whether a field may hold one."""

    aval = None


@dataclasses.dataclass(frozen=True)
class Group(Spec):
    """A pattern of blocks repeated; the repeats are scanned, so compile time does not grow with depth.

    Attributes:
      pattern: the blocks of one repeat.
      repeats: how often.
      per_layer: numbers that differ between repeats: ``(("0.mixer.position.base", (1e4, 1e6)), ...)``, where the path
        starts with the block's index in the pattern and there is one number per repeat.
    """

    pattern: tuple[Block, ...] = (Block(),)
    repeats: int = 1
    per_layer: tuple[tuple[str, tuple[int | float, ...]], ...] = ()

    def check(self) -> None:
        require(self.pattern, "Group.pattern: expected at least one block")
        require(self.repeats > 0, f"Group.repeats: expected a positive integer, got {self.repeats}")
        require(
            self.repeats == 1 or not hands_on(self),
            f"Group.repeats: a layer that hands on to later ones stands in a group of one repeat, got {self.repeats}",
        )
        for path, values in self.per_layer:
            head, _, rest = path.partition(".")
            require(
                head.isdigit() and int(head) < len(self.pattern) and rest,
                f"Group.per_layer: {path!r} must start with a block index below {len(self.pattern)} and name a field",
            )
            require(
                len(values) == self.repeats,
                f"Group.per_layer: {path!r} has {len(values)} values for {self.repeats} repeats",
            )
            for value in values:  # each must be a value the field accepts
                config.replace_at(self.pattern[int(head)], rest, value)
            try:
                config.replace_at(self.pattern[int(head)], rest, _Traced())
            except (ConfigError, TypeError):
                raise ConfigError(f"Group.per_layer: {path!r} may not differ between repeats") from None

    def blocks(self, values: dict[str, Any]) -> tuple[Block, ...]:
        """The pattern with per-layer fields set; ``values`` maps each path of ``per_layer`` to a (traced) number."""
        blocks = list(self.pattern)
        for path, value in values.items():
            head, _, rest = path.partition(".")
            blocks[int(head)] = config.replace_at(blocks[int(head)], rest, value)
        return tuple(blocks)


class Document(Spec):
    """A specification that stands alone: as JSON text, with its version."""

    def to_json(self) -> str:
        """The specification as JSON text, with its version."""
        return json.dumps({"version": VERSION, "model": config.to_dict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`. Raises `ConfigError` for another version or any field that does not fit."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"model specification is not JSON: {error}") from None
        found = data.get("version") if isinstance(data, dict) else None
        if found != VERSION:
            raise ConfigError(f"model specification has version {found!r}; this jaxlm reads version {VERSION}")
        require("model" in data, "model specification has a version but no field 'model'")
        return config.from_dict(cls, data["model"])


@dataclasses.dataclass(frozen=True)
class ModelSpec(Document):
    """A decoder language model.

    Attributes:
      vocab_size: number of token ids.
      width: of the residual stream.
      layers: groups of blocks, first to last.
      edit: tokens that the model adds to its input and takes out of its output (landmarks), or None.
      patcher: how bytes become the patches that ``layers`` see, and bytes again, or None for layers that see tokens.
        Embeddings and head are then of the patcher's width.
      norm: the final norm, or None.
      embed_norm: a norm of the embeddings, positions added (BLOOM), or None.
      embed_width: of the embedding table and the head, which learned projections join to the model's (ALBERT's
        factorised embedding; OPT 350M); 0 for the model's own.
      token_types: number of kinds of tokens, each with a learned embedding (BERT's two sentences); 0 for none.
      head_transform: a layer before the output projection (BERT's masked language model), or None.
      pooler: whether `Output.pooled` is made of each row's first token (BERT).
      tied_head: the output projection is the transposed embedding.
      head_bias: whether the logits have a learned offset (GPT-J, Phi), tied or not.
      dtype: of activations and matmuls, ``"float32"``, ``"bfloat16"`` or ``"float16"``. Parameters, positions, softmax,
        norms' sums, logits and losses are float32 always.
      dropout: rate on the embeddings and on what each mixer and ffn adds.
      embed_multiplier: factor of token embeddings (Gemma: sqrt(width)).
      residual_multiplier: factor of what each mixer and ffn adds (Granite).
      logit_multiplier: factor of the logits.
      logit_soft_cap: if positive, logits pass through ``cap * tanh(logits / cap)``.
      remat: what the backward pass keeps of a scanned repeat: ``"none"`` (all of it), ``"full"`` (only its input),
        ``"dots"`` (matmul results), ``"dots_no_batch"`` (results of matmuls with weights).
    """

    vocab_size: int = 256
    width: int = 128
    layers: tuple[Group, ...] = (Group(),)
    edit: Any = slot("sequence_edit", None, optional=True)
    patcher: Any = slot("patcher", None, optional=True)
    norm: Any = slot("norm", "rms", optional=True)
    embed_norm: Any = slot("norm", None, optional=True)
    embed_width: int = 0
    token_types: int = 0
    head_transform: HeadTransform | None = None
    pooler: bool = False
    tied_head: bool = False
    head_bias: bool = False
    dtype: str = "float32"
    dropout: float = 0.0
    embed_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_soft_cap: float = 0.0
    remat: str = "full"

    def check(self) -> None:
        require(self.vocab_size > 0 and self.width > 0, "ModelSpec: expected positive vocab_size and width")
        for field in ("embed_width", "token_types"):
            value = getattr(self, field)
            require(value >= 0, f"ModelSpec.{field}: expected a number >= 0, got {value}")
        require(self.layers, "ModelSpec.layers: expected at least one Group")
        mixers = [one for group in self.layers for block in group.pattern for one in mixers_of(block.mixer)]
        require(
            not all(_sees_a_set(mixer) for mixer in mixers),
            "ModelSpec.layers: with mask 'bidirectional' and position 'none' in all layers, the order of tokens has no "
            "effect; set a position in some layer, or another mask",
        )
        if self.edit is not None:
            self.edit.check_model(self.vocab_size, mixers)
        if self.patcher is not None:
            self.patcher.check_model(self)
        choose("ModelSpec.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        choose("ModelSpec.remat", self.remat, REMAT)
        require(0 <= self.dropout < 1, f"ModelSpec.dropout: expected a number in [0, 1), got {self.dropout}")
        require(
            self.logit_soft_cap >= 0, f"ModelSpec.logit_soft_cap: expected a number >= 0, got {self.logit_soft_cap}"
        )

    @property
    def depth(self) -> int:
        """Number of blocks in all."""
        return sum(len(group.pattern) * group.repeats for group in self.layers)
