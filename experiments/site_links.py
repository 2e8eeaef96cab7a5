"""A hook of MkDocs: links of the pages work in the site as they do on a code host.

Pages link with relative paths of the checkout: to each other, to committed results (``../results/...``), to BUILD.md
and CONTRIBUTING.md. MkDocs knows the folder docs/ alone, so what lies outside it and is linked is brought in: markdown
as pages, all else as files under ``committed/``. Nothing is fetched. A link to what does not exist stays as it is, and
`mkdocs build --strict` names it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ("BUILD.md", "CONTRIBUTING.md")  # pages that live in the checkout's root
INTO = "committed"

LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the guests, and every file outside docs/ that a page links to."""
    from mkdocs.structure.files import File

    for name in GUESTS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    wanted = set()
    for one in files.documentation_pages():
        text = Path(one.abs_src_path).read_text(encoding="utf-8")
        wanted |= {target for match in LINK.finditer(text) if (target := _outside(match["path"], one.src_uri))}
    for target in sorted(wanted):
        if (ROOT / target).is_file():
            files.append(File.generated(config, f"{INTO}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns paths of the checkout into paths of the site."""
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        path, home = match["path"], _in_checkout(match["path"], here)
        if home is not None:
            site = (
                home.removeprefix("docs/") if home.startswith("docs/") else home if home in GUESTS else f"{INTO}/{home}"
            )
            path = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"{match['head']}{path}{match['anchor'] or ''})"

    return LINK.sub(turned, markdown)


def _in_checkout(path: str, page: str) -> str | None:
    """A page's link as a path from the checkout's root, if it is one to a file there."""
    if re.match(r"[a-z]+:|/", path):
        return None
    folder = "" if page in GUESTS else posixpath.join("docs", posixpath.dirname(page))
    home = posixpath.normpath(posixpath.join(folder, path))
    return home if os.path.exists(ROOT / home) else None


def _outside(path: str, page: str) -> str | None:
    """The same, of files that MkDocs does not know."""
    home = _in_checkout(path, page)
    return home if home and not home.startswith("docs/") and home not in GUESTS else None
