"""The command `jaxlm`, how binaries start, and what a newcomer's mistakes are answered with."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jax
import pytest

import jaxlm
from experiments import command, flags, front_door, provenance, startup
from jaxlm.core import registry, versions
from jaxlm.core.errors import ConfigError
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.train.load import save_checkpoint
from tests.tiny import params_of

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ROOT / "tests" / "interop" / "data" / "llama"

STARTS = re.compile(r'(?m)^if __name__ == "__main__":\n    (.*)')
PROGRAMS = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__"): found[1]
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if (found := STARTS.search(path.read_text(encoding="utf-8")))
}
COMMANDS = [name for name, line in PROGRAMS.items() if "command.run" in line]
STUDIES = [name for name, line in PROGRAMS.items() if "config_flags.run" in line]


def said(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    code = front_door.main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_wheel_has_the_command():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "jaxlm": f"{front_door.__name__}:{front_door.main.__name__}"
    }


def test_every_name_starts_a_binary():
    """And every study with a configuration file has one."""
    modules = {f"experiments.{name}" for name in (*front_door.BINARIES.values(), *front_door.STUDIES)}
    assert modules <= set(PROGRAMS)
    assert {name for name in STUDIES if name != "experiments.train_lm"} <= modules


def test_help_says_each_command_in_a_line(capsys):
    code, out, err = said(capsys, "--help")
    assert code == 0 and not err
    for name in (*front_door.BINARIES, *front_door.OTHERS):
        (line,) = re.findall(rf"(?m)^  {name} +(.+)$", out)
        assert len(line) > 20
    assert said(capsys)[0] == 2  # nothing was asked for
    code, out, _ = said(capsys, "study")
    assert code == 0 and all(re.search(rf"(?m)^  {name} +\w.*\.$", out) for name in front_door.STUDIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'? allowed: benchmark, "),
        (["--verbose"], "unknown command '--verbose'"),
        (["study", "state_spce"], "unknown study 'state_spce'; did you mean 'state_space'?"),
        (["study", "--config=x"], "which study?"),
        (["list", "psition"], "unknown slot 'psition'; did you mean 'position'?"),
        (["list", "position", "mixer"], "takes one slot, got position mixer"),
        (["describe"], "takes the folder of a checkpoint, or --config=FILE.py:PRESET"),
        (["describe", "a", "b"], "takes the folder of a checkpoint"),
        (["describe", "nowhere"], "nowhere: no such folder"),
        (["describe", "nowhere", "--config.a=1"], "--config.field=value goes with --config=FILE.py:PRESET"),
        (["describe", "--lenght=3"], "'lenght'"),
        (["describe", "--length=0"], "--length"),
        (["describe", "--config=configs/train_lm.py:smok"], "unknown preset 'smok'; did you mean 'smoke'?"),
        (["describe", "--config=configs/trainlm.py"], "did you mean configs/train_lm.py?"),
        (["describe", "--config=configs/tokenization.py:markov_smoke", "--config.part=1"], "unknown field"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, _, err = said(capsys, *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_list_prints_every_method_with_its_paper(capsys):
    for slot in ("norm", "cache"):
        _, out, _ = said(capsys, "list", slot)
        assert [line.split()[0] for line in out.splitlines()] == list(registry.methods(slot))
        assert all(paper in out for paper in jaxlm.list(slot).values())
    _, out, _ = said(capsys, "list")
    assert [line.split()[0] for line in out.splitlines()] == list(registry.ROOMS)


def test_describe_of_folders_and_configurations(capsys, tmp_path):
    _, out, _ = said(capsys, "describe", str(LLAMA), "--length=64")
    assert jaxlm.describe(jaxlm.load_hf(LLAMA)[0], 64) in out
    spec = ModelSpec(vocab_size=32, width=8, layers=(Group((Block(mixer="lstm"),), 1),))
    model = jaxlm.LanguageModel(spec)
    save_checkpoint(model, params_of(spec), tmp_path / "run")
    _, out, _ = said(capsys, "describe", str(tmp_path / "run"))
    assert f"{tmp_path / 'run'}, step 0:" in out and jaxlm.describe(model) in out
    _, out, _ = said(capsys, "describe", "--config=configs/train_lm.py:smoke", "--config.model.width=32")
    assert "configs/train_lm.py:smoke.model:" in out and re.search(r"embed/table +259 x 32 ", out)


def test_a_command_is_the_binary(monkeypatch):
    """The same module as `__main__`, with the arguments as they are."""
    ran = {}

    def run_module(name, **options):
        ran.update(name=name, argv=list(sys.argv), **options)

    monkeypatch.setattr(runpy, "run_module", run_module)
    before = list(sys.argv)
    assert front_door.main(["convert", "--source=a b", "--verify"]) == 0
    assert ran == {
        "name": "experiments.convert_checkpoint",
        "argv": [before[0], "--source=a b", "--verify"],
        "run_name": "__main__",
        "alter_sys": True,
    }
    assert front_door.main(["study", "tokenization", "--replot"]) == 0
    assert ran["name"] == "experiments.tokenization" and ran["argv"][1:] == ["--replot"] and sys.argv == before


def program(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=300)


def test_the_command_as_a_process_far_from_the_checkout(tmp_path):
    done = program(sys.executable, "-m", "experiments.front_door", "train", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "python -m experiments.train_lm --config=configs/train_lm.py[:preset]" in done.stdout
    assert "--profile=" in done.stdout and "smoke " in done.stdout  # its own flags, its presets
    done = program(sys.executable, "-m", "experiments.front_door", "compress", "--sorce=a", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "error: Unknown command line flag 'sorce'. Did you mean: source ?\n"


# First-time mistakes, for every binary there is.


@pytest.fixture(scope="module")
def of_commands():
    """The flags of binaries without a configuration file, and their docstrings, in this process."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        for name in ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_WAIT_POLICY"):  # some set them when they are loaded
            patch.setenv(name, os.environ.get(name, ""))
        patch.setattr("experiments.host_memory.keep_freed_memory", lambda: None)
        yield {name: importlib.import_module(name) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_typo_in_a_flag_and_help(name, of_commands, capsys):
    module = of_commands[name]
    first = next(iter(module.FLAGS))
    never = lambda: pytest.fail("ran")
    for arguments, message in (
        ([f"--{first}x=1"], f"Unknown command line flag '{first}x'"),
        ([f"{first}=1"], f"unexpected argument ['{first}=1']; everything is a flag, written --name=value"),
    ):
        assert command.run(never, module.FLAGS, module.__doc__, ["binary", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert command.run(never, module.FLAGS, module.__doc__, ["binary", "--help"]) == 0
    out = capsys.readouterr().out
    assert len(out) > 200 and all(f"--{flag}=" in out for flag in module.FLAGS)


# What each binary says when it is called with nothing, or with folders that are not there.
NEEDS = {
    "experiments.compress": "--source and --target",
    "experiments.convert_checkpoint": "--source and --target: name both folders",
    "experiments.evaluate": "--checkpoint: name the folder of a checkpoint",
    "experiments.export_model": "--checkpoint: name the folder of a checkpoint",
    "experiments.generate": "runs/train_lm: no such folder; expected a checkpoint",
    "experiments.mixture_inference": "--tokenizer",
    "experiments.swap_tokenizer": "--checkpoint",
}


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_no_arguments(name, of_commands, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = of_commands[name]
    assert command.run(module.main, module.FLAGS, module.__doc__, ["binary"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and NEEDS[name] in err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_mistakes_with_studies(name, tmp_path):
    """Wrong preset, typos in a flag, a field and a file, and a workdir that another run has, each as a process."""
    config = f"configs/{name.rpartition('.')[2]}.py"
    smoke = next(p for p in flags.load(config)[0].PRESETS if "smoke" in p)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for arguments, message in (
        ([f"--config={config}:smokee"], "unknown preset 'smokee'; did you mean"),
        (["--wrkdir=x"], "'wrkdir'"),
        (["--config.seeed=1"], "unknown field of --config 'seeed'"),
        (["--config=configs/nothing.py:smoke"], "names: cache_edit, context_extension, "),
        ([f"--config={config}:{smoke}", "--workdir=taken"], "holds files but no config.json; choose an empty or new"),
    ):
        done = program(sys.executable, "-m", name, *arguments, cwd=tmp_path)
        last = done.stderr.splitlines()[-1:]
        assert done.returncode == 2 and "".join(last).startswith("error: ") and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]


# How binaries start.


@pytest.fixture
def settings():
    """jax's settings of the compilation cache, put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_for_the_user(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = startup.cache_compiled()
    assert folder is not None and folder.is_dir() and folder.is_relative_to(tmp_path / "jaxlm")
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert startup.cache_compiled() is None  # as where JAX_COMPILATION_CACHE_DIR names one
    jax.config.update("jax_compilation_cache_dir", None)
    for age, name in ((startup.UNUSED_DAYS + 1, "old"), (startup.UNUSED_DAYS - 1, "new")):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age * 86_400,) * 2)
    monkeypatch.setattr(startup, "_instructions", lambda: "another computer's")
    assert startup.cache_compiled() != folder
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    assert startup.cache_compiled() == folder and [path.name for path in folder.iterdir()] == ["new"]


def test_without_a_cache(settings, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert startup.cache_compiled() is None and not jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    assert startup.cache_compiled() is None and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def unasked(monkeypatch):
    """A computer on which nobody asked for the CPU and jax came up there."""
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.delenv("JAXLM_COORDINATOR", raising=False)
    yield monkeypatch
    jax.config.update("jax_platforms", before)


def test_an_accelerator_that_cannot_be_used_is_no_silent_cpu(unasked, capsys):
    locked = "Backend 'tpu' failed to initialize: The TPU is already in use by process with pid 7."

    def devices(name):
        raise RuntimeError(locked)

    unasked.setattr(startup, "accelerators", lambda: ["tpu"])
    unasked.setattr(startup, "find_spec", lambda name: name)
    unasked.setattr(jax, "devices", devices)
    assert command.run(lambda: pytest.fail("ran"), flags.flags.FlagValues(), "", ["binary"]) == 2
    assert capsys.readouterr().err == (
        f"error: this computer has a TPU, but jax cannot use it: {locked}; JAX_PLATFORMS=cpu asks for the CPU\n"
    )
    jax.config.update("jax_platforms", "cpu")
    assert command.run(lambda: 0, flags.flags.FlagValues(), "", ["binary"]) == 0
    assert not capsys.readouterr().err


def test_a_driver_that_fails_is_one_line(unasked, capsys):
    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda': INTERNAL: no\nsupported devices found")

    unasked.setattr(jax, "default_backend", broken)
    assert command.run(lambda: pytest.fail("ran"), flags.flags.FlagValues(), "", ["binary"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no supported devices found" in err and "JAX_PLATFORMS=cpu" in err
    jax.config.update("jax_platforms", "cuda")

    def absent():
        raise AssertionError

    unasked.setattr(jax, "default_backend", absent)
    assert command.run(lambda: pytest.fail("ran"), flags.flags.FlagValues(), "", ["binary"]) == 2
    assert "error: jax has no device to run on for JAX_PLATFORMS=cuda; " in capsys.readouterr().err
    unasked.setenv("JAXLM_COORDINATOR", "auto")  # then devices are not touched before the processes have met
    assert command.run(lambda: 0, flags.flags.FlagValues(), "", ["binary"]) == 0

    def lost():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        command.run(lost, flags.flags.FlagValues(), "", ["binary"])


def test_an_accelerator_without_its_extra_is_a_note(unasked, capsys):
    unasked.setattr(startup, "accelerators", lambda: ["cuda"])
    unasked.setattr(startup, "find_spec", lambda name: None)
    startup.check_device()
    err = capsys.readouterr().err
    assert err.startswith("note: ") and "pip install 'jaxlm[cuda13]'" in err and err.count("\n") == 1


def test_supported_versions(monkeypatch):
    import importlib.metadata

    pairs = (ROOT / "BUILD.md").read_text(encoding="utf-8")
    for python, number in (("3.11", "0.10.2"), ("3.12", "0.11.2"), ("3.13", "newest")):
        assert f"| {python} | {number} |" in pairs and re.search(rf"Python {python} and \D*{number}", versions.PAIRS)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"jax>={'.'.join(map(str, versions.JAX))}" in declared["dependencies"]
    assert declared["requires-python"] == f">={'.'.join(map(str, versions.PYTHON))}"
    for found, supported in (
        ("0.10.1", False),
        ("0.9.2", False),
        ("0.10.2", True),
        ("0.11.0.dev3", True),
        ("1.0", True),
    ):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, found=found: found)
        if supported:
            versions.check_jax.__wrapped__()
        else:
            with pytest.raises(ImportError, match=f"not run on jax {found}; supported pairs: .*3.12 and jax 0.11.2"):
                versions.check_jax.__wrapped__()
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(ImportError, match="does not run on Python .*supported pairs"):
        versions.check_python()


OLD = """
import importlib.metadata, sys
of = importlib.metadata.version
importlib.metadata.version = lambda name: "0.4.30" if name == "jax" else of(name)
"""


@pytest.mark.parametrize(
    ("use", "code", "message"),
    [
        ("import jaxlm.tokenize.byte; assert 'jax' not in sys.modules", 0, ""),
        ("import jaxlm; jaxlm.ModelSpec", 1, "ImportError: jaxlm does not run on jax 0.4.30; supported pairs"),
        ("from jaxlm.model.spec import ModelSpec", 1, "ImportError: jaxlm does not run on jax 0.4.30"),
        ("import experiments.generate", 2, "error: jaxlm does not run on jax 0.4.30; supported pairs"),
    ],
)
def test_an_old_jax(use, code, message, tmp_path):
    done = program(sys.executable, "-c", OLD + use, cwd=tmp_path)
    assert done.returncode == code and message in done.stderr.splitlines()[-1:].__str__(), done.stderr


def test_a_commit_is_the_librarys_own(tmp_path, monkeypatch):
    """An installed copy inside a repository of somebody else is not of that repository's commit."""
    git = lambda *arguments: subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    git("init", "-q")
    (tmp_path / "own.txt").touch()
    git("add", "own.txt")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "theirs")
    folder = tmp_path / "site-packages" / "experiments"
    folder.mkdir(parents=True)
    (folder / "provenance.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))
    assert provenance._commit() == "unknown"


def test_binaries_are_told_apart():
    """Every program starts in one of the two ways that the tests above know, but for the front door and a part."""
    assert set(PROGRAMS) - set(COMMANDS) - set(STUDIES) == {"experiments.front_door", "experiments.aot.bundles"}
    assert len(COMMANDS) > 10 and len(STUDIES) > 5


def test_the_error_for_a_missing_file_lists_what_is_shipped():
    with pytest.raises(ConfigError, match="there is no file 'mine.py'; write .*names: cache_edit, .*train_lm$"):
        flags.load("mine.py:smoke")
