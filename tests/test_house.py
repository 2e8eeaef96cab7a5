"""The rules of the house, as tables, and the tests that hold every file to them.

The rules are read from the syntax trees, so a forbidden import is found wherever it hides (in a function, under
TYPE_CHECKING) and without importing anything. Only the last tests import, in a process of their own.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm.core import registry

ROOT = Path(__file__).resolve().parent.parent

# Floors from top to bottom: a room may import the rooms of lower floors, never those of its own floor or above.
FLOORS = [
    {"configs"},
    {"experiments"},
    {"experiments.peers", "experiments.aot"},  # other libraries at the same work; compilers for absent chips
    {"jaxlm"},  # jaxlm/__init__.py, the public names
    {"jaxlm.eval"},
    {"jaxlm.train", "jaxlm.decode", "jaxlm.interop", "jaxlm.compress"},
    {"jaxlm.model"},
    {"jaxlm.mixer", "jaxlm.objective"},
    {"jaxlm.position", "jaxlm.attention", "jaxlm.cache", "jaxlm.ffn", "jaxlm.norm", "jaxlm.edit"},
    {"jaxlm.dist"},
    {"jaxlm.ops"},
    {"jaxlm.tokenize", "jaxlm.data"},
    {"jaxlm.core", "pallas_kernels"},  # and so pallas_kernels sees nothing of ours: a stranger can take it away
]

# Rooms that see only part of what lies below them.
ONLY_SEES = {
    "jaxlm.tokenize": {"jaxlm.core.errors", "jaxlm.core.config", "jaxlm.core.registry"},
    "jaxlm.data": {"jaxlm.core.errors", "jaxlm.core.config", "jaxlm.core.registry", "jaxlm.tokenize"},
}

# The methods of a slot do not import each other, but for a method that is the algebra others are written in.
FOUNDATIONS = {"jaxlm.attention.mask", "jaxlm.attention.data_mask"}

# What a room may import from outside when its module is loaded; anything heavier is imported inside a function.
OUTSIDE = {
    "jaxlm": set(),
    "jaxlm.tokenize": {"numpy"},
    "jaxlm.data": {"numpy"},
    "jaxlm.model": {"jax", "numpy", "flax"},
    "jaxlm.train": {"jax", "numpy", "optax", "orbax"},
    "experiments": {"jax", "numpy", "optax", "absl", "ml_collections"},
    "experiments.peers": {"numpy", "torch"},
    "configs": {"numpy"},
}
OUTSIDE_BY_DEFAULT = {"jax", "numpy"}

# Who may import these at all, even inside a function.
RESERVED = {
    "flax": {"jaxlm.model"},
    "orbax": {"jaxlm.train"},
    "absl": {"experiments"},
    "ml_collections": {"experiments"},
    "torch": {"experiments", "experiments.peers"},
    "pickle": set(),
    "cloudpickle": set(),
    "dill": set(),
    "shelve": set(),
    "marshal": set(),
}
NO_JAX = {"jaxlm.tokenize", "jaxlm.data"}
ONE_FILE = {"orbax"}  # whose interface is still moving

# jax names that have moved or are going away, and the only files that may say them.
MOVED = {
    "jax._src": "jaxlm/core/compat.py",
    "jax.make_mesh": "jaxlm/core/compat.py",
    "jax.sharding.AxisType": "jaxlm/core/compat.py",
    "jax.experimental.shard_map": "jaxlm/core/compat.py",
    "jax.experimental.pjit": None,
    "jax.experimental.maps": None,
    "jax.experimental.pallas.ops.gpu": None,
    "jax.tree_map": None,
    "jax.linear_util": None,
}

LONGEST_FILE = 600
NAMELESS = {"utils", "util", "common", "misc", "helpers", "stuff"}

# The module docstring of a configuration file says what the study promises.
HEAD_OF_A_CONFIG = ["expected", "hardware", "wall time"]

EXTRAS = ["torch", "transformers", "tokenizers", "safetensors", "matplotlib", "wandb", "tensorboardX", "trackio",
          "pyarrow", "zstandard", "grain", "scipy"]  # fmt: skip

ROOMS = sorted(set().union(*FLOORS), key=len, reverse=True)
FILES = sorted(
    path.relative_to(ROOT)
    for package in ("jaxlm", "pallas_kernels", "experiments", "configs")
    for path in (ROOT / package).rglob("*.py")
)


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room a module of ours is in, ``""`` for others."""
    return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), "")


def sees(module: str, allowed: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in allowed)


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))


@functools.cache
def imports(file: Path) -> list[tuple[str, bool]]:
    """(dotted module, whether it is imported when the file is) for every import of a file."""
    lazy = {
        id(inner)
        for outer in ast.walk(tree_of(file))
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for inner in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.parts[: len(file.parts) - node.level] if node.level else ()
            base = ".".join([*package, *(node.module.split(".") if node.module else ())])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, id(node) not in lazy) for name in names]
    return found


def test_the_tables_know_every_room():
    folders = {f"jaxlm.{path.parent.name}" for path in (ROOT / "jaxlm").glob("*/*.py")}
    assert folders <= set(ROOMS), f"not in FLOORS: {folders - set(ROOMS)}"


def hold(offences: Iterator[str]) -> None:
    """Fails with every offence of a rule, one a line."""
    found = list(offences)
    assert not found, "\n".join(["", *found])


def test_arrows_go_down_only():
    def offences():
        for file in FILES:
            room = room_of(module_of(file))
            floor = next(i for i, rooms in enumerate(FLOORS) if room in rooms)
            allowed = ONLY_SEES.get(room, set().union(*FLOORS[floor + 1 :]))
            for name, _ in imports(file):
                if room_of(name) not in ("", room) and not sees(name, allowed):
                    yield f"{file} imports {name}; {room} may import only {sorted(allowed)}"

    hold(offences())


def test_methods_of_a_slot_do_not_import_each_other():
    def offences():
        for slot, package in registry.ROOMS.items():
            methods = {f"{package}.{path.partition(':')[0]}" for path in registry.methods(slot).values()} - FOUNDATIONS
            for file in FILES:
                module = module_of(file)
                for name, _ in imports(file):
                    if module in methods and sees(name, methods - {module}):
                        yield f"{file} imports {name}; what two methods of {package} share goes to jaxlm.ops"

    hold(offences())


def test_imports_from_outside():
    def offences():
        for file in FILES:
            room = room_of(module_of(file))
            for name, at_load in imports(file):
                package = name.partition(".")[0]
                allowed = OUTSIDE.get(room, OUTSIDE_BY_DEFAULT)
                if package in RESERVED and room not in RESERVED[package]:
                    yield f"{file} imports {package}, which is for {sorted(RESERVED[package]) or 'nobody'}"
                elif room in NO_JAX and package in ("jax", "jaxlib", "flax", "optax"):
                    yield f"{file} imports {name}; {room} works without jax"
                elif at_load and not room_of(name) and package not in {*allowed, *sys.stdlib_module_names}:
                    yield f"{file} imports {package} when loaded; {room} may so import {sorted(allowed)}"

    hold(offences())


def test_a_moving_interface_is_behind_one_file():
    for package in ONE_FILE:
        users = [str(file) for file in FILES if any(name.partition(".")[0] == package for name, _ in imports(file))]
        assert len(users) <= 1, f"{package} is imported by {users}"


def test_moved_jax_names():
    def offences():
        for file in FILES:
            said = {name for name, _ in imports(file)}
            said |= {ast.unparse(node) for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)}
            for name, home in MOVED.items():
                if file.as_posix() != home and any(sees(other, {name}) for other in said):
                    yield f"{file} says {name}" + (f"; {home} has it for all versions" if home else "")

    hold(offences())


def test_nothing_is_unpickled():
    def offences():
        for file in FILES:
            for node in ast.walk(tree_of(file)):
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                    yield f"{file}:{node.value.lineno} allows pickles"

    hold(offences())


def test_sizes_names_and_docstrings():
    def offences():
        for file in [*FILES, *sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))]:
            text = (ROOT / file).read_text(encoding="utf-8")
            if text.count("\n") > LONGEST_FILE:
                yield f"{file} has {text.count(chr(10))} lines: probably two rooms"
            if NAMELESS & {file.stem, *file.parent.parts}:
                yield f"{file}: a name says what is inside"
            if text.strip() and not ast.get_docstring(tree_of(file)):
                yield f"{file} has no docstring"

    hold(offences())


def test_no_folder_of_tests_is_passed_over():
    """pytest's own list of folders to skip has `dist` in it: tests/dist once lay there for weeks, never run in CI."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    folders = {part for path in (ROOT / "tests").rglob("test_*.py") for part in path.relative_to(ROOT).parts[:-1]}
    assert not [name for name in folders for skip in options["norecursedirs"] if fnmatch.fnmatch(name, skip)]


def test_the_heads_of_configuration_files():
    def offences():
        for file in FILES:
            if file.parts[0] != "configs" or file.stem == "__init__":
                continue
            head = ast.get_docstring(tree_of(file)) or ""
            if not re.search(rf"python -m experiments\.\w+ --config=configs/{file.stem}\.py", head):
                yield f"{file}: the docstring has no exact command"
            for word in HEAD_OF_A_CONFIG:
                if word not in head.lower():
                    yield f"{file}: the docstring does not say {word!r}"
            if "smoke" not in getattr(importlib.import_module(module_of(file)), "PRESETS", {}):
                yield f"{file}: there is no preset 'smoke'"

    hold(offences())


@pytest.mark.parametrize("slot", sorted(registry.ROOMS))
def test_every_method_names_its_paper(slot):
    papers = registry.describe(slot)
    assert papers and all(papers.values()), f"no paper: {[name for name, paper in papers.items() if not paper]}"


def python(program: str) -> None:
    """Runs a program in a process of its own, in the repository's root."""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_bare_install_is_enough():
    """Every public name, and every method of every slot, without any of the extras."""
    python(f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ImportError(name + " is an extra, and this is a bare install")
sys.meta_path.insert(0, Blocked())
import jaxlm
for name in jaxlm.__all__:
    getattr(jaxlm, name)
from jaxlm.core import registry
for slot in registry.ROOMS:
    jaxlm.list(slot)
""")


@pytest.mark.parametrize("room", sorted(NO_JAX))
def test_rooms_that_never_load_jax(room):
    python(f"""
import importlib, pkgutil, sys
room = importlib.import_module({room!r})
for info in pkgutil.walk_packages(room.__path__, {room!r} + "."):
    importlib.import_module(info.name)
loaded = {{"jax", "jaxlib", "flax", "scipy"}} & set(sys.modules)
assert not loaded, loaded
""")
