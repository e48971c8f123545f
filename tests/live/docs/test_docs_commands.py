"""Every command in the docs runs here, or says why not. CONTRIBUTING.md states the rule.

A fenced block without a language, or of sh, bash or python, is run as it stands against the live server, but for the
ports. A comment right before it excuses it, `<!-- not run: why -->`; one in the page excuses all of them,
`<!-- nothing here is run: why -->`. Other languages, `text` among them, are to be looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.toy_model import scenes

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "demo/README.md", "tools/toy_model/README.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)
OTHER_TESTS = {"README.md": "python", "docs/client.md": "python"}  # test_readme.py and test_client_docs.py run these
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
WHOLE_PAGE = re.compile(r"^<!-- nothing here is run: [^>]+? -->$", re.M)
# Its commands ask the server at the default address if not told otherwise.
PRELUDE = """
florence2() {
    case "$1 $*" in
        *--url*|*--repository*|tasks*|serve*|export*) command florence2 "$@" ;;
        *) command florence2 "$@" --url "$FLORENCE2_URL" ;;
    esac
}
"""


class Block(NamedTuple):
    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Return the commands of a page that can be run."""
    text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    if WHOLE_PAGE.search(text):
        return []
    return [
        Block(page, text.count("\n", 0, match.start("code")) + 1, match["language"], match["code"])
        for match in FENCE.finditer(text)
        if match["language"] in ("", "sh", "bash", "python") and not match["why"]
        and OTHER_TESTS.get(page, "none") != match["language"]
    ]  # fmt: skip


@pytest.fixture
def place(tmp_path, repository) -> Path:
    """Prepare the directory of a reader: an image, and a repository exported to the default place."""
    scenes.make_scene(900_003).draw(640).save(tmp_path / "street.jpg")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "model_repository").symlink_to(repository)
    return tmp_path


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page)], ids=str)
def test_the_command_runs(server, place, block):
    """The lines run in order: exit code 0, something printed, and no error in Triton's responses."""
    code = block.code
    for port, url in ("8001", server.grpc_url), ("8000", server.http_url), ("8002", server.metrics_url):
        code = code.replace(f"127.0.0.1:{port}", url.split("/")[2])
    for tool in ("curl", "jq"):
        if tool in code and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    command = (
        [sys.executable, "-c", code]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c", PRELUDE + code]
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FLORENCE2_URL": server.grpc_url}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).strip() and '"error"' not in done.stdout
    assert ("generate_stream" in code) == ('"FINISH_REASON":""' in done.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_outside_of_a_fence(page):
    """Commands are in fenced blocks; indented ones would not be found."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    hidden = re.findall(r"^(?: {4}|\t)(?:\$ )?(?:make|python|florence2|curl|docker|kubectl|helm|pip) .*", prose, re.M)
    assert hidden == []
