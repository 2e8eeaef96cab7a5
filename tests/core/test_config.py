"""Laws of configuration objects, held by every registered method of every slot: types, JSON, slots, messages."""

from __future__ import annotations

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core import config, registry
from jaxlm.core.config import Spec, from_dict, make, slot, to_dict
from jaxlm.core.errors import ConfigError
from jaxlm.model.spec import Block, Group, ModelSpec

ROOMS = {room: package for room, package in registry.ROOMS.items() if room != "family"}  # families are data
METHODS = [(room, name) for room, package in ROOMS.items() for name in importlib.import_module(package).METHODS]
every_method = pytest.mark.parametrize("room, name", METHODS, ids=lambda value: value)

# Values to try in a field: some fit its type, some do not.
VALUES = [
    0,
    1,
    -1,
    3,
    64,
    0.5,
    -0.5,
    2.0,
    1e6,
    float("inf"),
    float("nan"),
    True,
    False,
    None,
    "",
    "none",
    "relu",
    "half",
]
VALUES += [(), (1, 4), [2, 3], (5, 4), ["a", "b"], {}, {"name": "none"}, {"name": "rotary", "args": {"base": 5.0}}]
VALUES += [
    {"name": ["a"]},
    {"name": "rotary", "args": 3},
    {1: 2, "a": 3},
    np.zeros((20, 20)),
    np.float64(3),
    object(),
    int,
]


def message(call) -> str:
    """The message of the `ConfigError` that ``call`` raises, which must be one line of a readable length."""
    with pytest.raises(ConfigError) as caught:
        call()
    text = str(caught.value)
    assert text and "\n" not in text and len(text) < 600, text
    return text


def comes_back(spec) -> None:
    """The law of the JSON form."""
    text = json.dumps(to_dict(spec))
    again = from_dict(type(spec), json.loads(text))
    assert again == spec and hash(again) == hash(spec) and json.dumps(to_dict(again)) == text


@every_method
def test_name_mapping_and_object_are_one(room, name):
    cls = registry.get(room, name)
    default = cls()
    assert make(room, name) == make(room, {"name": name}) == make(room, default) == default
    assert make(room, {"name": name, "args": to_dict(default)}) == default
    assert registry.name_of(room, default) == name
    comes_back(default)


@every_method
def test_any_value_of_a_field_is_taken_or_refused_in_one_line(room, name):
    cls = registry.get(room, name)
    default = cls()
    for field in dataclasses.fields(cls):
        taken = []
        for value in VALUES:
            try:
                spec = cls(**{field.name: value})
            except ConfigError as error:
                assert "\n" not in str(error) and cls.__name__ in str(error) or field.name in str(error), error
                assert len(str(error)) < 600
                continue
            taken.append(getattr(spec, field.name))
            if taken[-1] == taken[-1]:  # not NaN
                comes_back(spec)
                changed = config.differences(to_dict(spec), to_dict(default))
                assert bool(changed) == (spec != default)
                assert all(path.split(".")[0] == field.name for path in changed)
        original = getattr(default, field.name)
        kinds = (int, float) if isinstance(original, float) else type(original)
        kinds = (type(None), config.Spec) if original is None else kinds
        if "slot" not in field.metadata:
            assert all(isinstance(value, kinds) for value in taken)
            assert isinstance(original, bool) or not any(isinstance(value, bool) for value in taken)


@every_method
def test_misspelt_fields(room, name):
    cls = registry.get(room, name)
    for field in dataclasses.fields(cls):
        text = message(lambda field=field: make(room, {"name": name, "args": {f"{field.name}x": 1}}))
        assert f"did you mean '{field.name}'" in text and cls.__name__ in text
    assert "zzz" in message(lambda: from_dict(cls, {"zzz": 1}))


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_not_of_a_slot(room):
    some = next(iter(registry.methods(room)))
    for value in [3, None, ["a"], registry.get(room, some), object(), {"args": {}}, {"name": some, "arguments": {}}]:
        assert "here" in message(lambda value=value: make(room, value, where="here"))
    other = next(method for slot, method in METHODS if slot != room)
    foreign = next(registry.get(slot, method)() for slot, method in METHODS if method == other and slot != room)
    text = message(lambda: make(room, foreign, where="here"))
    assert "here" in text and some in text
    assert some in message(lambda: make(room, f"{some}x"))


def test_an_optional_slot_takes_none():
    for value in (None, "none", {"name": "none"}, {"name": "none", "args": {}}):
        block = Block(ffn=value)
        assert block.ffn is None
        comes_back(block)
    assert "mixer" in message(lambda: Block(mixer=None))


numbers = st.floats(0.001, 1e6, allow_nan=False).map(lambda x: float(f"{x:.6g}"))
positions = st.one_of(
    st.sampled_from(["none", "alibi"]),
    st.fixed_dictionaries({"name": st.just("rotary"), "args": st.fixed_dictionaries({"base": numbers})}),
    st.fixed_dictionaries({"name": st.just("learned"), "args": st.fixed_dictionaries({"size": st.integers(1, 10**6)})}),
)
mixers = st.fixed_dictionaries(
    {"heads": st.sampled_from([4, 8]), "kv_heads": st.sampled_from([0, 1, 2]), "position": positions, "scale": numbers}
)
blocks = st.fixed_dictionaries(
    {
        "mixer": mixers.map(lambda args: {"name": "attention", "args": args}),
        "ffn": st.sampled_from(["none", "mlp", {"name": "glu", "args": {"hidden": 7}}, None]),
        "norm": st.sampled_from(["rms", "layer"]),
        "placement": st.sampled_from(["pre", "post", "sandwich", "output"]),
    }
)
groups = st.fixed_dictionaries({"pattern": st.lists(blocks, min_size=1, max_size=3), "repeats": st.integers(1, 5)})


@settings(max_examples=50)
@given(
    st.fixed_dictionaries(
        {
            "layers": st.lists(groups, min_size=1, max_size=3),
            "norm": st.sampled_from(["rms", None]),
            "dropout": st.just(0),
        }
    )
)
def test_model_specifications_come_back(fields):
    spec = ModelSpec(**fields)
    comes_back(spec)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec.depth == sum(group["repeats"] * len(group["pattern"]) for group in fields["layers"])


def test_version_and_form_of_the_json():
    good = json.loads(ModelSpec().to_json())
    for data, word in [
        ({**good, "version": 99}, "99"),
        ({"model": good["model"]}, "version"),
        ([], "version"),
        ({"version": good["version"]}, "'model'"),
        ({**good, "model": {"widht": 3}}, "width"),
        ({**good, "model": {**good["model"], "layers": [{"pattern": [{"mixer": "atention"}]}]}}, "attention"),
    ]:
        assert word in message(lambda data=data: ModelSpec.from_json(json.dumps(data)))
    assert "JSON" in message(lambda: ModelSpec.from_json("{"))


def test_types_of_plain_fields():
    @dataclasses.dataclass(frozen=True)
    class Inner(Spec):
        rate: float = 0.0

    @dataclasses.dataclass(frozen=True)
    class Outer(Spec):
        count: int = 1
        flag: bool = False
        pair: tuple[int, float] = (1, 2.0)
        names: tuple[str, ...] = ()
        maybe: int | None = None
        inner: Inner = Inner()
        norm: object = slot("norm", "rms")

    # get_type_hints looks names up in the module
    globals()["Inner"] = Inner
    made = Outer(count=2, pair=[3, 4], names=["a"], inner={"rate": 1}, maybe=5)
    assert made.pair == (3, 4.0) and isinstance(made.pair[1], float) and made.names == ("a",)
    assert made.inner == Inner(1.0) and isinstance(made.inner.rate, float)
    comes_back(made)
    for field, value in [
        ("count", True),
        ("count", 1.0),
        ("count", "1"),
        ("flag", 1),
        ("pair", (1,)),
        ("pair", "ab"),
        ("names", "ab"),
        ("names", [1]),
        ("maybe", "x"),
        ("inner", {"rte": 1}),
        ("inner", 3),
        ("norm", 3),
    ]:
        assert f"Outer.{field}" in message(lambda field=field, value=value: Outer(**{field: value}))


def test_differences_name_the_leaf():
    new = {"a": {"b": 1, "c": [1, 2], "d": 1}, "e": True, "g": 1}
    old = {"a": {"b": 2, "c": [1, 3], "d": 1.0}, "e": 1, "f": None}
    expected = {"a.b": (1, 2), "a.c.1": (2, 3), "e": (True, 1), "g": (1, "(absent)"), "f": ("(absent)", None)}
    assert config.differences(new, old) == expected
    assert config.differences({"a": [1]}, {"a": [1, 2]}) == {"a": ([1], [1, 2])}
    assert config.differences(new, new) == {}


def test_replacing_at_a_path():
    block = Block()
    changed = config.replace_at(block, "mixer.position.base", 7.0)
    assert changed.mixer.position.base == 7.0 and block.mixer.position.base != 7.0
    assert config.differences(to_dict(changed), to_dict(block)).keys() == {"mixer.args.position.args.base"}
    assert "did you mean 'position'" in message(lambda: config.replace_at(block, "mixer.positon.base", 7.0))
    assert "'more'" in message(lambda: config.replace_at(block, "mixer.position.base.more", 7.0))
    assert "Rotary.base" in message(lambda: config.replace_at(block, "mixer.position.base", "x"))
    jax.eval_shape(lambda base: config.replace_at(block, "mixer.position.base", base).mixer.position.base, 1.0)


def test_per_layer_paths():
    pattern, path = (Block(), Block(mixer={"name": "attention", "args": {"mask": "window"}})), "1.mixer.mask.size"
    group = Group(pattern, 2, ((path, (4, 8)),))
    comes_back(group)
    assert [group.blocks({path: size})[1].mixer.mask.size for size in (4, 8)] == [4, 8]
    assert group.blocks({path: 4})[0] == pattern[0]
    for bad in [
        ((path, (4,)),),
        (("2.mixer.mask.size", (4, 8)),),
        (("mixer.mask.size", (4, 8)),),
        (("1", (4, 8)),),
        (("1.mixer.mask.siez", (4, 8)),),
        ((path, (4, 0)),),
        ((path, (4, 0.5)),),
        ((path, ("a", "b")),),
        (("0.mixer.mask.size", (4, 8)),),
        (("0.mixer.heads", (4, 8)),),
        (("0.mixer.scale", (1.0, 2.0)),),
        (("0.mixer.qkv_bias", (True, False)),),
        (("0.ffn.hidden", (4, 8)),),
    ]:
        message(lambda bad=bad: Group(pattern, 2, bad))
