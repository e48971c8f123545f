"""The documentation builds as a site: every link leads somewhere, and no page loads anything from another server."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import florence2_client
from florence2_client import cli

pytest.importorskip("material", reason="the site needs Python 3.11")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[3]
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site(site):
    """Pages keep their place in the repository; README.md is the index of its folder."""
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    built = [page.with_name("index.html" if page.name == "README.md" else f"{page.stem}.html") for page in pages]
    assert len(built) > 30
    assert [page for page in built if not (site / page).is_file()] == []


def test_no_page_loads_anything_from_another_server(site):
    loaded = {url for page in site.rglob("*.html") for url in LOADED.findall(page.read_text(encoding="utf-8"))}
    loaded |= {url for style in site.rglob("*.css") for url in re.findall(r"url\(\W?(https?:[^)]+)", style.read_text())}
    assert loaded == set()


def test_lists_and_tables_are_not_read_as_prose(site):
    """Python-Markdown needs a blank line before them, and deeper indents than GitHub."""
    swallowed = {
        page.relative_to(site): paragraph[:80]
        for page in site.rglob("*.html")
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.S)
        if re.search(r"\n\s*([-*] |\d+\. |\|)", paragraph)
    }
    assert swallowed == {}


def test_the_reference_has_every_public_name(site):
    """It also says what the methods of both clients return."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: florence2_client\.(\w+)$", page, re.M)) == sorted(florence2_client.__all__)
    reference = (site / "docs" / "python.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]+>", "", reference))
    assert all(f'id="florence2_client.{name}"' in reference for name in florence2_client.__all__)
    assert "Result[TextAnswer]" in text and "TextT" not in text
    assert '>>> client.caption("scene.png")' in text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_reference_has_every_option_of_the_commands(site, capsys, command):
    """That is, what `--help` prints before the examples, and a section for nothing else."""
    page = (site / "docs" / "commands.html").read_text(encoding="utf-8")
    _, *sections = re.split(r'<h2 id="florence2-(\w+)">', page)
    described = dict(zip(sections[::2], sections[1::2], strict=True))
    assert list(described) == list(cli.COMMANDS)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out.partition("examples:")[0]))
    assert {option for option in options - {"--help"} if option not in described[command]} == set()


def test_the_http_api_is_rendered(site):
    """With every path and every field of docs/openapi.yaml."""
    api = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text(encoding="utf-8"))
    page = (site / "docs" / "http.html").read_text(encoding="utf-8")
    fields = [field for schema in api["components"]["schemas"].values() for field in schema["properties"]]
    assert fields and [name for name in [*api["paths"], *fields] if f"<code>{name}</code>" not in page] == []
