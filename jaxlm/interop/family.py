"""A family of Hugging Face checkpoints as data: what its settings mean for a `ModelSpec`, and where its tensors go.

    FAMILY = Family(
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        block=Block(mixer=Attention(), ffn=Glu()),       # what no setting changes
        parts=(Keys({"hidden_size": Key("model.width"), ...}), Rope()),
        tensors={"embed/table": plain("model.embed_tokens.weight"), ...},
    )

Each part of the settings reads config.json into a `Draft` and writes it back from a finished model. Writing only takes
down; that nothing was lost is checked by reading what was written (`Family.write`). No family has code of its own in
the model: what a family needs there is a slot or a field of general use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jaxlm.core import config, registry
from jaxlm.core.errors import ConfigError, shown
from jaxlm.core.types import Dims
from jaxlm.interop.config import REQUIRED, Config
from jaxlm.interop.layout import Layout
from jaxlm.mixer.keyed import Keyed
from jaxlm.mixer.mamba import Mamba
from jaxlm.mixer.rg_lru import RgLru
from jaxlm.mixer.rwkv4 import Rwkv4
from jaxlm.mixer.rwkv_channel import RwkvChannel
from jaxlm.model.spec import Block, Group, ModelSpec


class Draft:
    """A model on its way from config.json: fields of the model, and a block per layer."""

    def __init__(self, block: Block, depth: int):
        self.model: dict[str, Any] = {}
        self.blocks = [block] * depth

    def set(self, path: str, value: Any, layer: int | None = None) -> None:
        """Sets ``"model.<field>"``, a field of every block (or of one ``layer``'s), ``"mixer.position.base"``, or of
        the mixers (within others, too) or feed-forwards that are registered by a name, ``"mamba2.state"``."""
        head, _, field = path.partition(".")
        if head == "model":
            name, _, inner = field.partition(".")
            self.model[name] = config.replace_at(self.model[name], inner, value) if inner else value
            return
        for i in range(len(self.blocks)) if layer is None else (layer,):
            if own := within(self.blocks[i], path):
                self.blocks[i] = config.replace_at(self.blocks[i], own, value)

    def build(self) -> ModelSpec:
        return ModelSpec(**self.model, layers=group(self.blocks))


def within(block: Block, path: str) -> str:
    """A path of `Draft.set` as one from the block; empty if it means another kind of mixer or feed-forward."""
    head, _, field = path.partition(".")
    if head in FIELDS:
        return path
    if block.ffn is not None and registry.name_of("ffn", block.ffn) == head:
        return f"ffn.{field}"
    at = next((at for at, mixer in _placed("mixer", block.mixer) if registry.name_of("mixer", mixer) == head), "")
    return at and f"{at}.{field}"


def _placed(at: str, mixer: Any) -> Iterator[tuple[str, Any]]:
    """A mixer and those it is made of, each with its path."""
    yield at, mixer
    for name in parts_of(mixer):
        yield from _placed(f"{at}.{name}", getattr(mixer, name))


def parts_of(mixer: Any) -> list[str]:
    """The fields of a mixer that are mixers."""
    return [field.name for field in dataclasses.fields(mixer) if field.metadata.get("slot") == "mixer"]


FIELDS = {field.name for field in dataclasses.fields(Block)}


def group(blocks: Sequence[Block]) -> tuple[Group, ...]:
    """The layers as scanned groups, with the fewest blocks to compile, in the fewest groups.

    Layers that begin or end otherwise than the rest (ModernBERT's first, the dense ones before experts) are groups of
    their own.
    """
    kinds = {block: i for i, block in enumerate(dict.fromkeys(blocks))}
    row = [kinds[block] for block in blocks]
    # Of the first ``stop`` layers: (blocks, groups), and where the last group begins and its period.
    best: list[tuple[tuple[int, int], int, int]] = [((0, 0), 0, 0)]
    for stop in range(1, len(row) + 1):
        found = []
        for start in range(stop):
            period = _period(row[start:stop])
            (cost, count), *_ = best[start]
            found.append(((cost + period, count + 1), -start, period))
        cost, start, period = min(found)
        best.append((cost, -start, period))
    groups, stop = [], len(row)
    while stop:
        _, start, period = best[stop]
        groups.append(Group(tuple(blocks[start : start + period]), (stop - start) // period))
        stop = start
    return tuple(reversed(groups))


def _period(row: list[int]) -> int:
    """The least length that the whole row is a repetition of."""
    size = len(row)
    return next(p for p in range(1, size + 1) if size % p == 0 and row[p:] == row[: size - p])


class Part(Protocol):
    """Some of a family's settings, both ways."""

    def read(self, c: Config, draft: Draft) -> None:
        """Takes them from config.json. Raises `ConfigError` for what the model cannot do."""
        ...

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        """The keys of config.json for a model; only meaningful for models of the family."""
        ...


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of config.json and the fields it sets.

    Attributes:
      paths: as `Draft.set` takes them; several fields may hang on one key, or none (it is checked and not written).
      kind: the JSON type.
      default: where the key is absent; a function of the `Config` for defaults that follow other keys.
      ours, theirs: the conversion, each way.
      null: what null in config.json stands for; by default, for the default.
      also: other spellings that are read.
    """

    paths: str | tuple[str, ...]
    kind: type | tuple[type, ...] = int
    default: Any = REQUIRED
    ours: Callable[[Any], Any] = lambda value: value
    theirs: Callable[[Any], Any] = lambda value: value
    null: Any = REQUIRED
    also: tuple[str, ...] = ()


class Keys(dict[str, Key]):
    """A table of keys."""

    def read(self, c: Config, draft: Draft) -> None:
        for name, key in self.items():
            default = key.default(c) if callable(key.default) else key.default
            value = c.look_up((name, *key.also), key.kind, default, key.null)
            for path in (key.paths,) if isinstance(key.paths, str) else key.paths:
                draft.set(path, key.ours(value))

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        out = {}
        for name, key in self.items():
            if not key.paths:
                continue
            found = (
                found_at(spec, blocks, path) for path in ((key.paths,) if isinstance(key.paths, str) else key.paths)
            )
            value = next((value for value in found if value is not None), None)
            if value is not None:
                out[name] = key.theirs(value)
        return out


def found_at(spec: ModelSpec, blocks: list[Block], path: str) -> Any:
    """What the model has at a path of `Draft.set`: in the first block that has it, None if no block does."""
    head, _, rest = path.partition(".")
    if head == "model":
        return at_path(spec, rest)
    own = ((block, within(block, path)) for block in blocks)
    return next((value for block, at in own if at and (value := at_path(block, at)) is not None), None)


def at_path(value: Any, path: str) -> Any:
    """The field at a dotted path, None where there is none."""
    for field in filter(None, path.split(".")):
        value = getattr(value, field, None)
    return value


@dataclasses.dataclass(frozen=True)
class Only:
    """A key that this library reads at some values alone; those are also what it writes (the first, unless None)."""

    key: str
    allowed: tuple[Any, ...]
    why: str

    def read(self, c: Config, draft: Draft) -> None:
        c.only(self.key, self.allowed, self.why)

    def write(self, spec: ModelSpec, blocks: list[Block]) -> dict[str, Any]:
        return {} if self.allowed[0] is None else {self.key: self.allowed[0]}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
      model_type, architectures: its names in config.json; the first architecture is written.
      paper: the report or paper.
      block: every layer's block before the settings are read.
      parts: the settings.
      tensors: our parameter paths (a block's without its group, ``"mixer/qkv"``) to stored tensors, ``{layer}`` for the
        layer's number; a function of the model where names depend on it. Of layers whose mixers have paths in common
        but not tensors, ``"mamba:mixer/out"`` (`layout.only`) comes first.
      prefix: what names of a checkpoint of the bare model lack.
      buffers: patterns of names that old files hold and nobody needs.
      depth: the key that counts the layers, and other spellings of it. Parts may make more or fewer blocks of them, and
        then write the key themselves.
      listed: whether that key may list them, as names or letters.
      layer: the number of the stored layer that each block is, or begins with; by default its own.
      marks: other numbers that a block's stored names hold, ``{"first": 3}`` for ``{first}``.
      renamed: old spellings within stored names, ``{"gamma": "weight"}``.
      optional: fields of `ModelSpec` that are true where a tensor of that name is stored, which no key of config.json
        says, ``{"pooler": "bert.pooler.dense.weight"}``.
      model: fields of `ModelSpec` that no setting changes.
    """

    model_type: str
    architectures: tuple[str, ...]
    block: Block
    parts: tuple[Part, ...]
    tensors: Mapping[str, Layout] | Callable[[ModelSpec], Mapping[str, Layout]]
    paper: str = ""
    prefix: str = "model."
    buffers: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    depth: tuple[str, ...] = ("num_hidden_layers",)
    listed: bool = False
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layer: Callable[[list[Block]], Sequence[int]] = lambda blocks: range(len(blocks))
    marks: Callable[[list[Block]], Sequence[Mapping[str, int]]] = lambda blocks: [{}] * len(blocks)

    def read(self, c: Config) -> ModelSpec:
        """The model of a config.json. Raises `ConfigError` naming the key that cannot be served, and why."""
        if "quantization_config" in c:
            raise ConfigError(
                "config.json: quantization_config is not supported (weights must be float32, bfloat16 or float16); "
                "save a dequantised copy with transformers first"
            )
        depth = c.look_up(self.depth, (list, str, int) if self.listed else int)
        depth = depth if isinstance(depth, int) else len(depth)
        if depth < 1:
            raise ConfigError(f"config.json: {self.depth[0]} should be positive, got {depth}")
        draft = Draft(self.block, depth)
        draft.model.update(self.model)
        try:
            for part in self.parts:
                part.read(c, draft)
            draft.model.setdefault("norm", draft.blocks[0].norm)
            return draft.build()
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith("config.json") else f"config.json: {text}") from None

    def write(self, spec: ModelSpec) -> dict[str, Any]:
        """The config.json of a model. Raises `ConfigError` naming what this family cannot express."""
        blocks = canonical(spec)
        out: dict[str, Any] = {"architectures": [self.architectures[0]], "model_type": self.model_type}
        out[self.depth[0]] = len(blocks)
        try:
            for part in self.parts:
                out |= part.write(spec, blocks)
            back = self.alike(self.read(Config(out)), spec)
        except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:  # another kind of model
            reason = str(error) if isinstance(error, ConfigError) else "its parts are of other kinds"
            raise ConfigError(f"{self.model_type} cannot express this model: {reason}") from None
        if found := differing(self.model_type, back, spec):
            raise ConfigError(found)
        # null, or transformers takes ids of its own that may lie outside the vocabulary
        return dict.fromkeys(TOKENS) | out

    def alike(self, spec: ModelSpec, other: ModelSpec) -> ModelSpec:
        """``spec`` with what config.json does not say (`optional`) as ``other`` has it."""
        return dataclasses.replace(spec, **{field: getattr(other, field) for field in self.optional})

    def stored(self, spec: ModelSpec, dtype: str, names: Collection[str]) -> ModelSpec:
        """``spec`` in its dtype, and with what goes by which tensors there are (`optional`)."""
        there = {field: name in names for field, name in self.optional.items()}
        return dataclasses.replace(spec, dtype=dtype, **there)

    def stacks(self, spec: ModelSpec) -> dict[str, tuple[Family, ModelSpec]]:
        """The models that a model is made of, by the paths of their parameters, with the families that store them."""
        return {"": (self, spec)}

    def names(self, spec: ModelSpec) -> Mapping[str, Layout]:
        """`tensors` for one model."""
        return self.tensors(spec) if callable(self.tensors) else self.tensors

    def numbers(self, spec: ModelSpec) -> list[dict[str, int]]:
        """What each block's stored names hold: the number of its ``layer`` and of the ``next``, and `marks`."""
        blocks = every_block(spec)
        each = zip(self.layer(blocks), self.marks(blocks), strict=True)
        return [{"layer": layer, "next": layer + 1, **marks} for layer, marks in each]


def every_block(spec: ModelSpec) -> list[Block]:
    """Every layer's block in order, per-layer fields not set."""
    return [block for g in spec.layers for _ in range(g.repeats) for block in g.pattern]


def canonical(spec: ModelSpec) -> list[Block]:
    """Every layer's block in order, with values in place of the zeros that stand for defaults."""
    blocks = []
    for g in spec.layers:
        for r in range(g.repeats):
            blocks += [_explicit(b, spec.width) for b in g.blocks({path: values[r] for path, values in g.per_layer})]
    return blocks


def _explicit(block: Block, width: int) -> Block:
    return dataclasses.replace(block, mixer=_complete(block.mixer, width), ffn=_sized(block.ffn, width))


# Of mixers: how to compute, and values at first.
UNSTORED = (
    "chunk", "implementation", "step_range", "step_floor", "decay_range", "a_range", "dt_range",
)  # fmt: skip


def _complete(mixer: Any, width: int) -> Any:
    """A mixer with values in place of zeros, and without what checkpoints do not tell."""
    fields = {field.name for field in dataclasses.fields(mixer)}
    if parts := parts_of(mixer):
        each = zip(parts, mixer.widths(Dims(width)), strict=True)
        inner = {name: _complete(getattr(mixer, name), own.width) for name, own in each}
        inner |= {"ffn": _sized(mixer.ffn, width)} if "ffn" in fields else {}
        return dataclasses.replace(mixer, **inner)
    if {"heads", "kv_heads", "head_dim", "scale"} <= fields:
        head_dim = mixer.head_dim or width // mixer.heads
        mixer = dataclasses.replace(
            mixer,
            kv_heads=mixer.kv_heads or mixer.heads,
            head_dim=head_dim,
            scale=mixer.scale or head_dim**-0.5,
            qk_norm_span="head" if mixer.qk_norm is None else mixer.qk_norm_span,
        )
    if isinstance(mixer, Mamba):
        mixer = dataclasses.replace(mixer, dt_rank=mixer.dt_rank or -(-width // 16))
    elif isinstance(mixer, RgLru | Rwkv4):
        mixer = dataclasses.replace(mixer, width=mixer.width or width)
    elif isinstance(mixer, RwkvChannel):
        mixer = dataclasses.replace(mixer, hidden=mixer.hidden or 4 * width)
    elif isinstance(mixer, Keyed):
        keys, values = mixer.widths(Dims(width))
        mixer = dataclasses.replace(mixer, key_heads=mixer.groups, key_width=keys, value_width=values)
    return dataclasses.replace(mixer, **{name: getattr(type(mixer), name) for name in UNSTORED if name in fields})


def _sized(ffn: Any, width: int) -> Any:
    """A feed-forward with its hidden width, and without what training alone looks at."""
    if ffn is None:
        return None
    fields = {field.name for field in dataclasses.fields(ffn)}
    if {"hidden", "expansion"} <= fields:
        hidden = next(iter(ffn.params(Dims(width)).values())).shape[1]
        return dataclasses.replace(ffn, hidden=hidden, expansion=type(ffn)().expansion)
    if "expert" in fields:
        training = {name: getattr(type(ffn)(), name) for name in ("capacity", "balance", "z_loss")}
        return dataclasses.replace(ffn, expert=_sized(ffn.expert, width), shared=_sized(ffn.shared, width), **training)
    return ffn


# Keys of special tokens, which belong to the tokenizer and not to the model.
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

# What a run chooses and a checkpoint does not fix.
FREE = ("dtype", "remat", "dropout")


def differing(family: str, found: Any, wanted: Any) -> str:
    """The line that says what a family makes of a model otherwise than it is; empty if it does not."""
    for path, (theirs, ours) in different(found, wanted).items():
        return f"{family} cannot express this model: {path} is {shown(ours)}, it would be {shown(theirs)}"
    return ""


def different(one: Any, two: Any) -> dict[str, tuple[Any, Any]]:
    """Where two models differ as functions of their parameters: ``{"layers.3.mixer.heads": (of one, of two)}``."""

    def of_stack(spec: ModelSpec) -> dict[str, Any]:
        out = {key: value for key, value in config.to_dict(spec).items() if key not in (*FREE, "layers")}
        return {**out, "layers": config.to_dict(canonical(spec))}

    def form(spec: Any) -> dict[str, Any]:
        if isinstance(spec, ModelSpec):
            return of_stack(spec)
        return {**config.to_dict(spec), **{name: of_stack(stack) for name, stack in spec.stacks.items()}}

    found = config.differences(form(one), form(two))
    return {key: pair for key, pair in found.items() if not _equal(*pair)}


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-12 * abs(b)
