"""Configuration files and flags: what an override does, and that a bad one is a single line before anything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from experiments.flags import define_config, help_text, parse_config
from experiments.overrides import override
from jaxlm.core.config import to_dict
from jaxlm.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

STUDY = '''
"""A study for the tests of the flags."""
from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments import flags
from jaxlm.core.config import Spec, require, slot
from jaxlm.core.types import PositionEncoding


@dataclasses.dataclass(frozen=True)
class Layer(Spec):
    heads: int = 4
    position: PositionEncoding = slot("position", "rotary")


@dataclasses.dataclass(frozen=True)
class RunConfig(Spec):
    layers: tuple[Layer, ...] = (Layer(), Layer(position="alibi"))
    extra: PositionEncoding | None = slot("position", None, optional=True)
    seeds: tuple[int, ...] = (0,)
    rate: float = 0.1
    limit: int | None = None
    note: str = "plain"
    verbose: bool = False

    def check(self) -> None:
        require(self.rate > 0, f"rate must be positive, got {self.rate}")


def main(config: RunConfig, workdir: Path) -> None:
    require(config.note != "fail", "the corpus is empty")
    print("ran with", config.seeds, workdir)


if __name__ == "__main__":
    flags.run(main, default="settings.py:small")
'''

SETTINGS = '''
"""Command: python -m study --config=settings.py:small"""
from study import RunConfig

PRESETS = {"small": "one seed", "large": "three seeds"}


def get_config(preset="small"):
    return RunConfig(seeds=(0,) if preset == "small" else (0, 1, 2), note=preset)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "study.py").write_text(STUDY)
    (tmp_path / "settings.py").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    yield tmp_path
    sys.modules.pop("study", None)


@pytest.fixture
def parse(folder):
    """Parses a command line of the study as its binary would."""
    import study

    def parse(*arguments: str):
        values = flags.FlagValues()
        define_config("settings.py:small", values)
        return parse_config(study.RunConfig, ["study", *arguments], values)

    return parse


def test_file_and_preset(parse):
    assert parse().seeds == (0,)
    assert parse("--config=settings.py:large").seeds == (0, 1, 2)
    assert parse("--config", "settings.py:large", "--config.note", "spaced").note == "spaced"


@pytest.mark.parametrize(
    ("flag", "path", "value"),
    [
        ("--config.seeds=(3,4)", "seeds", (3, 4)),
        ("--config.seeds=[]", "seeds", ()),
        ("--config.seeds[0]=7", "seeds", (7,)),
        ("--config.rate=1", "rate", 1.0),
        ("--config.rate=3e-4", "rate", 3e-4),
        ("--config.limit=5", "limit", 5),
        ("--config.note=123", "note", "123"),
        ("--config.note=a=b, c", "note", "a=b, c"),
        ("--config.verbose", "verbose", True),
        ("--config.verbose=true", "verbose", True),
        ("--config.layers[0].heads=2", "layers[0].heads", 2),
        ("--config.layers[-1].heads=2", "layers[1].heads", 2),
        ("--config.layers[0].position.args.base=50", "layers[0].position.base", 50.0),
    ],
)
def test_override_reaches_the_field_and_nothing_else(parse, flag, path, value):
    plain, changed = parse(), parse(flag)
    assert eval(f"c.{path}", {"c": changed}) == value
    changed_back = override(changed, [])  # rebuilding is the identity
    assert changed_back == changed
    kept = [field for field in to_dict(plain) if field != path.partition("[")[0].partition(".")[0]]
    assert all(to_dict(plain)[field] == to_dict(changed)[field] for field in kept)


def test_the_last_of_two_flags_wins(parse):
    assert parse("--config.verbose", "--noconfig.verbose").verbose is False
    assert parse("--config.rate=1", "--config.rate=2").rate == 2


def test_another_method_drops_the_old_arguments_and_keeps_those_of_the_command(parse, capsys):
    before = "--config.layers[0].position.args.size=33"
    config = parse(before, "--config.layers[0].position.name=learned")
    assert type(config.layers[0].position).__name__ == "Learned" and config.layers[0].position.size == 33
    assert "note: --config.layers[0].position is now 'learned'; the arguments of 'rotary' are dropped" in (
        capsys.readouterr().out
    )
    with pytest.raises(ConfigError, match="unknown field of --config.layers\\[0\\].position.args 'base'"):
        parse("--config.layers[0].position.args.base=3", "--config.layers[0].position.name=alibi")


def test_the_same_method_keeps_its_arguments(parse, capsys):
    config = parse("--config.layers[0].position.name=rotary", "--config.layers[0].position.args.base=9")
    assert config.layers[0].position.base == 9 and "dropped" not in capsys.readouterr().out


def test_a_method_inside_a_method_chosen_in_the_same_command(parse):
    deep = "--config.layers[1].position.args.inner"
    config = parse(f"{deep}.args.base=7", f"{deep}.name=rotary", "--config.layers[1].position.name=randomized")
    assert config.layers[1].position.inner.base == 7
    config = parse(f"{deep}.name=alibi", "--config.layers[1].position.name=randomized")
    assert type(config.layers[1].position.inner).__name__ == "Alibi"


def test_an_optional_slot_comes_and_goes(parse):
    assert parse().extra is None
    assert type(parse("--config.extra=rotary", "--config.extra.args.base=5").extra).__name__ == "Rotary"
    assert parse("--config.extra=rotary", "--config.extra=none").extra is None


def test_prints_what_differs_as_flags(parse, capsys):
    parse("--config.layers[0].heads=2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["--config.layers[0].heads=2", "(default", "4)"],
        ["--config.note=small", "(default", "plain)"],
    ]


def test_arguments_of_another_method_are_compared_with_its_own_defaults(parse, capsys):
    position = "--config.layers[0].position"
    parse(f"{position}.name=learned", f"{position}.args.size=33", "--config.extra=alibi")
    flags = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --config")]
    assert flags == [
        f"{position}.name=learned",
        f"{position}.args.size=33",
        "--config.extra.name=alibi",
        "--config.note=small",
    ]


BAD = [
    (["--config.sedes=1"], "unknown field of --config 'sedes'; did you mean 'seeds'?"),
    (["--config.layers[0].haeds=1"], "--config.layers[0] 'haeds'; did you mean 'heads'?"),
    (["--config.layers[5].heads=1"], "--config.layers[5]: there are 2 elements"),
    (["--config.layers.heads=1"], "--config.layers is a list: say which element"),
    (["--config.rate.x=1"], "--config.rate is 0.1, which has no field 'x'"),
    (["--config.rate=fast"], "RunConfig.rate: expected float, got str 'fast'"),
    (["--config.rate=-1"], "rate must be positive, got -1.0"),
    (["--config.limit=2.5"], "RunConfig.limit: expected int | None, got float 2.5"),
    (["--config.seeds=(0,'a')"], "RunConfig.seeds[1]: expected int, got str 'a'"),
    (["--config.rate"], "--config.rate needs a value"),
    (["--config.layers[0=1"], "a path is written"),
    (["--config.extra=rotory"], "--config.extra: unknown position 'rotory'; did you mean 'rotary'?"),
    (["--config.extra={'nme': 'rotary'}"], "RunConfig.extra: a position is written {'name': ..., 'args': {...}}"),
    (["--config.layers=3"], "RunConfig.layers: expected tuple[study.Layer, ...], got int 3"),
    (["--wrokdir=x"], "'wrokdir'. Did you mean: workdir"),
    (["config.rate=3"], "unexpected argument 'config.rate=3'"),
    (["--config=settings.py:smal"], "settings.py: unknown preset 'smal'; did you mean 'small'? allowed: large, small"),
    (["--config=setings.py"], "there is no file 'setings.py'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments[0] for arguments, _ in BAD])
def test_a_bad_setting_is_named_with_what_is_allowed(parse, arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "bad.py, line 1: SyntaxError"),
        ("x = 1\ndef get_config():\n    return y", "bad.py, line 3: NameError: name 'y' is not defined"),
        ("x = 1", "bad.py: there is no function get_config"),
        ("from study import RunConfig\ndef get_config():\n    return RunConfig(rate='a')", "bad.py: RunConfig.rate"),
        ("def get_config():\n    return {}", "get_config must return a RunConfig, got dict"),
    ],
)
def test_a_bad_file_is_named_with_the_line(parse, folder, text, message):
    (folder / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse("--config=bad.py")


def test_help_lists_presets_fields_and_methods(folder):
    values = flags.FlagValues()
    define_config("settings.py:small", values)
    text = help_text(["study", "--help", "--config.layers[0].heads=3"], values)
    for line in (
        "Command: python -m study",
        "large        three seeds",
        "--config.layers[0].heads=3",
        "--config.layers[1].position.name=alibi  (one of: ",
        "--workdir=runs/settings",
    ):
        assert line in text


def test_the_binary_runs_and_fails_in_one_line(folder):
    """As a process: `python -m`, where the study is `__main__` and the configuration file imports it by name."""

    def binary(*arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "study", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    good = binary("--config.seeds=(1,2)", "--workdir=here")
    assert good.returncode == 0 and "ran with (1, 2) here" in good.stdout, good.stderr
    for argument, message in [("--config.sedes=1", "unknown field"), ("--config.note=fail", "the corpus is empty")]:
        bad = binary(argument)
        assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
        assert message in bad.stderr
    shown = binary("--help")
    assert shown.returncode == 0 and "python -m study --config=settings.py[:preset]" in shown.stdout
