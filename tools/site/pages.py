"""Give the site the layout of the repository, so that a link leads to the same file on the site as in a checkout.

A hook of MkDocs, which by itself takes only the pages in `docs`, as if that folder were the whole site.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/**/*.md", "demo/*.md", "examples/*.md", "tools/**/*.md")
FENCED = re.compile(r"^(```.*?^```$)", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def anchor(heading: str, _separator: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def on_config(config: MkDocsConfig) -> None:
    """Use GitHub's anchors, and add the pages that mkdocs.yml does not name, such as the decision records."""
    config.mdx_configs["toc"]["slugify"] = anchor
    named = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    new = [page for page in pages if page not in named]
    config.nav[-1]["Decisions"] += [page for page in new if page.startswith("docs/adr/")]
    config.nav[-2]["More"] += [page for page in new if not page.startswith("docs/adr/")]


def on_page_markdown(markdown: str, **_: object) -> str:
    """Indent what continues a list item by four columns, as Python-Markdown needs it; GitHub is content with two."""
    return "".join(
        part if part.startswith("```") else re.sub(r"^ {2,3}(?=\S)", "    ", part, flags=re.M)
        for part in FENCED.split(markdown)
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the pages of the repository, the files that they link to, and the theme's."""
    pages = {page for pattern in PAGES for page in ROOT.glob(pattern)}
    linked = {(page.parent / target).resolve() for page in pages for target in LINK.findall(page.read_text("utf-8"))}
    paths = pages | {path for path in linked if path.is_file()} | set((ROOT / "docs" / "site").iterdir())
    own = [File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)) for path in sorted(paths)]
    return Files([*own, *(file for file in files if file.src_dir != config.docs_dir)])
