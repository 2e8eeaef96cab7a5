"""Every Python block of the pages runs, every command in them exists, and links of the site lead somewhere."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
from pathlib import Path

import jax
import pytest

import jaxlm
from experiments import flags, library_page, site_links
from experiments.overrides import override
from experiments.results_page import pages
from jaxlm.core.errors import ConfigError
from jaxlm.tokenize.base import BOS, EOS, FIM
from jaxlm.tokenize.bpe import BpeTokenizer
from jaxlm.tokenize.bpe_files import to_hf
from tests.conftest import ROOT

PAGES = [page for page in pages(ROOT) if page.name != "README.md"]
WITH_PYTHON = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]
QUICK = {"mixers.md", "positions.md", "tasks.md", "plain_functions.md", "port_a_model.md", "sharding.md"}  # seconds
name_of = lambda page: page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with what the pages speak of: a checkpoint, one with a tokenizer, a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Llama-3.2-1B").symlink_to(ROOT / "tests" / "interop" / "data" / "llama")
    (tmp_path / "notes.txt").write_text("Today we wrote a line.\n" * 200, encoding="utf-8")
    return tmp_path


def checkpoint(folder: Path) -> None:
    """A model of bytes in the form of Hugging Face, whose tokenizer has the marks of a hole in the text."""
    tokenizer = BpeTokenizer(((84, 104),), specials=(BOS, EOS, *FIM))
    block = jaxlm.Block(mixer=jaxlm.Attention(heads=2, position="rotary"), ffn="glu")
    model = jaxlm.LanguageModel(jaxlm.ModelSpec(tokenizer.vocab_size, 16, (jaxlm.Group((block,), 1),)))
    jaxlm.save_hf(model, jaxlm.init(model, jax.random.key(0)), folder)
    to_hf(tokenizer, folder)


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.name not in QUICK), id=name_of(p)) for p in WITH_PYTHON]
)
def test_the_blocks_of_a_page_run(page, folder):
    """One after the other, as a reader would type them."""
    if page.name == "tokenization.md":
        checkpoint(folder / "checkpoint")
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, name_of(page), "exec", dont_inherit=True), names)


COMMAND = re.compile(r"python -m (?:experiments|tests)\.[^`\n#]*|^make [a-z-]+(?=\s*(?:#|$))", re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
EVERY_STUDY = {"config", "workdir", "replot", "profile", "help"}


def code(page: Path) -> str:
    """The code of a page: fenced blocks that are not Python, continued lines joined, and spans."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    fenced = re.findall(r"^```(?:text|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return "\n".join([*fenced, *spans])


def flags_of(module: str) -> set[str]:
    path = ROOT / Path(*module.split("."))
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.rglob("*.py"))
    found = [one for file in files for one in re.findall(r'DEFINE_(\w+)\(\s*"(\w+)"', file.read_text(encoding="utf-8"))]
    return {name for _, name in found} | {f"no{name}" for kind, name in found if kind.startswith("bool")}


@functools.cache
def configuration(source: str):
    return flags.load(source)[1]


def fault(command: str) -> str:
    """What a command names that is not there; ``""`` if all is."""
    if command.startswith("make "):
        return "" if command.split()[1] in TARGETS else "no such target"
    module, *arguments = shlex.split(command)[2:]
    if importlib.util.find_spec(module) is None:
        return f"no module {module}"
    arguments = [part for part in arguments if part.startswith("--")]
    source, changes = "", []
    for part in arguments:
        name, _, value = part[2:].partition("=")
        if name == "config":
            source = value
        elif name.startswith("config."):
            changes.append((name.removeprefix("config."), value))
        elif name not in flags_of(module) | EVERY_STUDY:
            return f"{module} has no flag --{name}"
    try:
        if source:
            override(configuration(source), changes)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", [*pages(ROOT), ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_every_command_on_a_page_exists(page):
    found = {match[0].strip() for match in COMMAND.finditer(code(page)) if "<" not in match[0]}
    assert not {command: why for command in sorted(found) if (why := fault(command))}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("make tests", "no such target"),
        ("python -m experiments.train", "no module"),
        ("python -m experiments.train_lm --configs=configs/train_lm.py:smoke", "no flag --configs"),
        ("python -m experiments.train_lm --config=configs/train_lm.py:smok", "smok"),
        ("python -m experiments.train_lm --config=configs/train_lm.py:smoke --config.model.widht=3", "widht"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command, why):
    assert why in fault(command)


def test_the_library_page_has_every_public_name():
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- library: (\w+) -->", text)) == set(library_page.names())


def test_links_lead_to_files_and_anchors():
    """Relative links of every page, as a code host resolves them."""
    lost = []
    for page in [*pages(ROOT), ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for match in site_links.LINK.finditer(text):
            if re.match(r"[a-z]+:", match["path"]):
                continue
            target = (page.parent / match["path"]).resolve()
            if not target.exists():
                lost.append(f"{name_of(page)}: {match['path']}")
            elif match["anchor"] and match["anchor"][1:] not in anchors(target):
                lost.append(f"{name_of(page)}: {match['path']}{match['anchor']}")
    assert not lost


@functools.cache
def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_the_site_has_every_page():
    """And no other: mkdocs.yml lists them by hand."""
    listed = set(re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}
    assert listed == there | set(site_links.GUESTS)


def test_links_of_pages_become_links_of_the_site():
    page = type("Page", (), {"file": type("File", (), {"src_uri": "results/training.md"})})()
    turned = lambda text: site_links.on_page_markdown(text, page, None, None)
    assert turned("[a](../library.md#init)") == "[a](../library.md#init)"
    assert turned("![f](../../results/train_lm/smoke/loss.png)") == "![f](../committed/results/train_lm/smoke/loss.png)"
    assert turned("[b](../../BUILD.md)") == "[b](../BUILD.md)"
    assert turned("[c](nowhere.md) [d](https://example.org/x)") == "[c](nowhere.md) [d](https://example.org/x)"


def test_signatures_and_docstrings_as_markdown():
    assert "### `jaxlm.init`" in library_page.block("init", ROOT, ROOT)
    assert "] = stack," in library_page.block("jaxlm.data.loader:Loader", ROOT, ROOT)  # a default that is a function
    with pytest.raises(ConfigError, match="public name 'inti'.*init"):
        library_page.block("inti", ROOT, ROOT)
    text = library_page.prose(
        "One ``line`` of a < b.\n\nArgs:\n  x, y: what\n    they are.\n\nReturns:\n  This\n  and that."
    )
    assert text == "One `line` of a &lt; b.\n\nArgs:\n\n* `x, y`: what they are.\n\nReturns: This and that."
