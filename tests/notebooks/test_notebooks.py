"""The notebooks: each .ipynb is what its source says, the setup cell minds what it finds, and all of them run.

01 and 08 run as programs in the default suite, which needs nothing of Jupyter; every notebook runs in a kernel of its
own in the slow one (extra `notebooks`). FAST=1 has the sizes of a test.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import jaxlm
from jaxlm.core import versions as versions_of
from notebooks import build

ROOT = build.FOLDER.parent
SOURCES = build.sources()
SETUP = (build.FOLDER / "setup_cell.py").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECONDS = 900  # for one notebook, on a machine that is busy


def test_there_are_eight_each_with_its_source():
    assert [path.name[:2] for path in SOURCES] == [f"{n:02d}" for n in range(1, 9)]
    assert sorted(path.with_suffix(".ipynb") for path in SOURCES) == sorted(build.FOLDER.glob("*.ipynb"))
    assert set(build.FIGURES) <= {path.stem for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_source_says(path):
    """As `python notebooks/build.py` writes both."""
    source = path.read_text(encoding="utf-8")
    assert build.renewed(path.stem, source) == source
    text = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert build.notebook(source) == text
    cells = json.loads(text)["cells"]
    assert 8 <= len(cells) <= 30 and len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert f"/{build.REPOSITORY}/blob/main/notebooks/{path.stem}.ipynb" in "".join(cells[0]["source"])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_what_a_notebook_names_is_there(path):
    """Folders of results, presets and other notebooks."""
    text = path.read_text(encoding="utf-8")
    assert "results/" in text or path.stem in ("07_sharding", "08_your_own_method")
    for name in re.findall(r"`((?:results|tests|configs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for name, preset in re.findall(r"--config=configs/(\w+)\.py:(\w+)", text):
        assert preset in __import__(f"configs.{name}", fromlist=["PRESETS"]).PRESETS
    for number in re.findall(r"\b(0\d)\b", text):
        assert any(other.name.startswith(number) for other in SOURCES), number


def test_the_docs_figures_are_there_and_say_where_they_come_from():
    """As `python notebooks/build.py --images docs/images` draws them."""
    folder = ROOT / "docs" / "images"
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in build.FIGURES.values())
    (entry,) = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert entry["command"] == "python notebooks/build.py --images docs/images" and entry["commit"]


def test_a_number_that_is_no_notebook(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build.py", "--run", "99"])
    with pytest.raises(SystemExit):
        build.main()
    assert "no notebook 99; there are 01_quickstart, 02_" in capsys.readouterr().err


SMALL = """# what is for tools

# %% [markdown]
# # A title
#
# [![](colab-badge.svg)](of another)
#
# Words.

# %% setup
obsolete()

# %%
x = 1


# %%
def f(): ...
"""


def test_a_source_is_renewed_and_its_notebook_made_of_it():
    source = build.renewed("01_small", SMALL)
    assert build.renewed("01_small", source) == source and "obsolete" not in source and "of another" not in source
    assert SETUP.strip() in source and "x = 1\n\n\n# %%\ndef f(): ...\n" in source
    cells = json.loads(build.notebook(source))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "code", "code"]
    assert "".join(cells[0]["source"]) == f"# A title\n\n{build.badge('01_small')}\n\nWords."
    assert cells[2]["source"] == ["x = 1"] and cells[2]["id"] == "cell-03"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# %% setup\nobsolete()\n", "", "there is one cell '# %% setup'"),
        ("# # A title", "# A title", "the first cell is a title"),
        ("# %%\nx", "# %% seutp\nx", "# %% seutp; allowed"),
        ("x = 1\n", "\n", "a cell is empty"),
        ("# Words.", "Words.", "a line of text is no comment"),
    ],
)
def test_a_source_that_is_wrong(old, new, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build.renewed("01_small", SMALL.replace(old, new, 1))


# ---- the setup cell


class Pip:
    """Stands for what is installed, and notes what pip is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, jaxlm_is_there: bool, **versions: str):
        self.asked: list[str] = []
        found = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in found:
                raise importlib.metadata.PackageNotFoundError(name)
            return found[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if jaxlm_is_there else None)
        monkeypatch.setattr(subprocess, "run", lambda command, **_: self.asked.extend(command[5:]))
        self.names: dict[str, Any] = {}

    def setup(self) -> None:
        exec(compile(SETUP, "setup_cell.py", "exec"), self.names)


def test_setup_leaves_what_is_there_alone(monkeypatch, capsys):
    pip = Pip(monkeypatch, jaxlm_is_there=True, jax="0.10.2")
    monkeypatch.setenv("FAST", "1")
    pip.setup()
    assert not pip.asked and pip.names["FAST"] is True and pip.names["jaxlm"] is jaxlm
    assert "x cpu" in capsys.readouterr().out


def test_setup_installs_beside_the_images_jax(monkeypatch):
    pip = Pip(monkeypatch, jaxlm_is_there=False, jax="0.11.2", libtpu="0.0.40")
    monkeypatch.delenv("FAST", raising=False)
    pip.setup()
    assert pip.asked == ["jaxlm[plots,tokenize]", "jax==0.11.2"] and pip.names["FAST"] is False
    pip = Pip(monkeypatch, jaxlm_is_there=False)  # no jax at all: jaxlm brings one
    pip.setup()
    assert pip.asked == ["jaxlm[plots,tokenize]"]
    extras = PROJECT["optional-dependencies"]
    assert {"plots", "tokenize"} <= set(extras)


@pytest.mark.parametrize(
    ("versions", "wanted"),
    [
        ({"jax": "0.9.2", "libtpu": "0.0.30"}, "jax[tpu]>=0.10.2"),
        ({"jax": "0.7.0", "jax_cuda12_plugin": "0.7.0"}, "jax[cuda12]>=0.10.2"),
        ({"jax": "0.10.1.dev1"}, "jax>=0.10.2"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_setup_replaces_an_old_jax_and_says_restart(monkeypatch, versions, wanted, there):
    pip = Pip(monkeypatch, jaxlm_is_there=there, **versions)
    with pytest.raises(SystemExit, match=f"jax {versions['jax']} was too old .* restart") as caught:
        pip.setup()
    assert "\n" not in str(caught.value) and versions_of.PAIRS in str(caught.value)
    assert pip.asked == ([] if there else ["jaxlm[plots,tokenize]"]) + [wanted]


def test_setup_on_an_old_python_or_without_a_device(monkeypatch):
    pip = Pip(monkeypatch, jaxlm_is_there=True, jax="0.10.2")
    with monkeypatch.context() as within:
        within.setattr(sys, "version_info", (3, 10, 1))
        with pytest.raises(SystemExit, match="jaxlm does not run on Python .*; supported pairs: Python 3.11 and"):
            pip.setup()

    def broken() -> list[Any]:
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr("jax.devices", broken)
    with pytest.raises(SystemExit, match="JAX_PLATFORMS.*asks for the CPU: Unable to initialize backend 'tpu'"):
        pip.setup()


def test_setup_knows_the_versions_of_the_library():
    """It stands alone: the library may not be there yet."""
    assert f'PAIRS = "{versions_of.PAIRS}"' in SETUP
    assert f'OLDEST = "{".".join(map(str, versions_of.JAX))}"' in SETUP
    assert f"sys.version_info < {versions_of.PYTHON}" in SETUP


# ---- that they run


@pytest.fixture
def fast(monkeypatch):
    """As a reader would run it: one CPU device, unless the notebook asks for eight."""
    monkeypatch.setenv("FAST", "1")
    flags = os.environ.get("XLA_FLAGS", "").split()
    monkeypatch.setenv("XLA_FLAGS", " ".join(flag for flag in flags if "device_count" not in flag))


def runs(number: str) -> Path:
    return next(path for path in SOURCES if path.name.startswith(number))


@pytest.mark.parametrize("number", ["01", "08"])
def test_runs_as_a_program(fast, number):
    build.run(runs(number))


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_runs_in_a_kernel(fast, path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra notebooks is not installed; make test-all installs it")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no figure is shown"


def test_a_failure_is_told(tmp_path):
    broken = tmp_path / "09_broken.py"
    broken.write_text("print('so far')\nraise SystemExit('stop')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="09_broken.py failed with exit status 1; it had printed:\nso far"):
        build.run(broken)
