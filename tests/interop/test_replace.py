"""A folder is replaced as a whole or not at all, whatever ends the writer and wherever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.interop import replace
from jaxlm.interop.replace import replace_folder

ROOT = Path(__file__).resolve().parents[2]


def write(folder, text):
    (folder / "sub").mkdir()
    (folder / "a").write_text(text)
    (folder / "sub" / "b").write_text(text)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def old(folder):
    folder.mkdir()
    write(folder, "old")
    (folder / "only-old").write_text("old")
    return folder


OLD = {"a": "old", "sub/b": "old", "only-old": "old"}
NEW = {"a": "new", "sub/b": "new"}


@pytest.fixture(params=["swapped", "renamed"])
def way(request, monkeypatch):
    """With the system's exchange of two folders (where there is one), and without."""
    if request.param == "renamed":
        monkeypatch.setattr(replace, "_exchange", lambda one, two: False)


@pytest.mark.parametrize("there", ["nothing", "empty", "old"])
def test_the_new_one_takes_the_place(tmp_path, way, there):
    target = tmp_path / "deep" / "out"
    if there != "nothing":
        target.parent.mkdir()
        target.mkdir() if there == "empty" else old(target)
    with replace_folder(target, overwrite=there == "old") as new:
        assert new.parent == target.parent
        write(new, "new")
        assert contents(target) == (OLD if there == "old" else {})
    assert contents(target) == NEW
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_one(tmp_path, way):
    target = old(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), replace_folder(target, overwrite=True) as new:
        write(new, "new")
        raise KeyboardInterrupt
    assert contents(target) == OLD and list(tmp_path.iterdir()) == [target]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    target = old(tmp_path / "out")
    monkeypatch.setattr(replace, "_exchange", lambda one, two: False)
    rename = Path.rename

    def fail(self, to):
        if ".jaxlm-new-" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with (
        pytest.raises(ConfigError, match="cannot be written: No space left"),
        replace_folder(target, overwrite=True) as new,
    ):
        write(new, "new")
    assert contents(target) == OLD and list(tmp_path.iterdir()) == [target]


# Where the process dies: the name of a function of `replace` (or of os, shutil, Path), and after how many calls of it.
DEATHS = {
    "while writing": ("test.write", 1),
    "while flushing": ("replace._sync", 2),
    "before the swap": ("replace._exchange", 1),
    "after the swap": ("replace.shutil.rmtree", 1),
    "between the renames": ("replace.Path.rename", 2),
}
WRITER = """
import os, sys
from pathlib import Path
from jaxlm.interop import replace
target, name, count, swap = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "swapped"

class test:
    @staticmethod
    def write(folder):
        (folder / "a").write_text("new")

def die_at(owner, attribute):
    real, calls = getattr(owner, attribute), []
    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os._exit(7)
        return real(*arguments, **options)
    setattr(owner, attribute, wrapped)

if not swap:
    replace._exchange = lambda one, two: False
owner, _, attribute = name.rpartition(".")
die_at(eval(owner), attribute)
with replace.replace_folder(target, overwrite=True) as new:
    test.write(new)
    test.write(new)
"""


@pytest.mark.parametrize(
    "death, way",
    [(d, way) for d in DEATHS for way in ("swapped", "renamed") if (d, way) != ("between the renames", "swapped")],
)
def test_a_process_that_dies(tmp_path, death, way):
    target, (name, count) = old(tmp_path / "out"), DEATHS[death]
    command = [sys.executable, "-c", WRITER, str(target), name, str(count), way]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 7, result.stderr
    left = [path for path in tmp_path.iterdir() if path != target]
    assert left and all(path.name.startswith(".out.jaxlm-") for path in left)
    if death == "after the swap":
        assert contents(target) == {"a": "new"}
    elif death != "between the renames":
        assert contents(target) == OLD
    else:  # the one moment in which the old one has another name
        assert not target.exists() and OLD in [contents(path) for path in left]
        with pytest.raises(ConfigError, match="is not empty"), replace_folder(target):
            pass  # refused, because the old one is back
        assert contents(target) == OLD
    with replace_folder(target, overwrite=True) as new:
        write(new, "new")
    assert contents(target) == NEW and list(tmp_path.iterdir()) == [target]


def test_what_is_refused(tmp_path, monkeypatch):
    target = old(tmp_path / "out")
    (tmp_path / "file").touch()
    for path, overwrite, match in [
        (target, False, "is not empty; choose another, or replace it with overwrite=True"),
        (tmp_path / "file", True, "is a file"),
        (tmp_path / "file" / "out", True, "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=match) as error, replace_folder(path, overwrite):
            pytest.fail("the block ran")
        assert "\n" not in str(error.value)
    for inside in (target, target / "sub"):
        monkeypatch.chdir(inside)
        with pytest.raises(ConfigError, match="the current folder"), replace_folder(target, overwrite=True):
            pytest.fail("the block ran")
    assert contents(target) == OLD


def test_a_link_stays_a_link(tmp_path):
    old(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replace_folder(tmp_path / "link", overwrite=True) as new:
        write(new, "new")
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "real") == NEW


def test_permissions_are_the_usual_ones(tmp_path):
    with replace_folder(tmp_path / "out") as new:
        write(new, "new")
    (tmp_path / "plain").mkdir()
    assert os.stat(tmp_path / "out").st_mode == os.stat(tmp_path / "plain").st_mode
