"""Every page's commands can be pasted as they stand, block by block, in a fresh clone after `make demo`.

Fenced blocks without a language, or of sh or bash, are pasted into one shell, python into one interpreter, in the
order of the page. Only the ports differ: the tests' server stands for the one that the pages start. A comment right
before a block excuses it, `<!-- not run: why -->`; one in the page excuses all of them, `<!-- nothing here is run: why
-->`. Other languages, `text` among them, are to be looked at. CONTRIBUTING.md states the rule.
"""

from __future__ import annotations

import code
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from florence2.server.embedded import EmbeddedServer
from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.server import Front

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "demo/README.md", "tools/toy_model/README.md")),
        *(ROOT / "examples").glob("*.md"),
        *(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "adr"),
    ]
)
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
HIDDEN = re.compile(
    r"^(?: {4}|\t)(?:\$ )?(?:\.venv/bin/)?(?:make|python|florence2|curl|docker|kubectl|helm|pip) .*", re.M
)
WHOLE_PAGE = re.compile(r"^<!-- nothing here is run: [^>]+? -->$", re.M)
PRINTED = {"docs/client.md": ("scene.png ", "the region lies outside the image")}
SHELL, PYTHON = ("", "sh", "bash"), ("python",)
GATEWAY = "127.0.0.1:8080"
UNTIL_CTRL_C = re.compile(r"^\S*florence2 (serve|ui|gateway|mcp)\b", re.M)
# make would run these tests, and the other commands do not return: see that they would start.
PRELUDE = f"""
make() {{ command make --dry-run "$@"; }}
starts() {{ {sys.executable} -c '
import sys
from florence2_client.cli import parser
options = parser().parse_args(sys.argv[1:])
repository = getattr(options, "repository", None)
assert repository is None or getattr(options, "url", None) or (repository / "florence2_ensemble").exists(), repository
print("runs until Ctrl-C:", *sys.argv[1:])' "$@"; }}
"""


class Block(NamedTuple):
    place: str
    code: str


class Prompt(code.InteractiveConsole):
    """Python's prompt, but for its errors, which it raises: a blank line ends a statement of several lines."""

    def showtraceback(self) -> NoReturn:
        raise  # the exception that is being handled

    def showsyntaxerror(self, filename: str | None = None, **_: object) -> NoReturn:
        raise


def blocks(page: Path, languages: tuple[str, ...]) -> list[Block]:
    """Return the commands of a page that can be run."""
    text = page.read_text(encoding="utf-8")
    if WHOLE_PAGE.search(text):
        return []
    return [
        Block(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('code')) + 1}", match["code"])
        for match in FENCE.finditer(text)
        if match["language"] in languages and not match["why"]
    ]


def pages_with(languages: tuple[str, ...]) -> pytest.MarkDecorator:
    """Run a test for each page that has such blocks."""
    named = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, languages)]
    return pytest.mark.parametrize("page", named)


@pytest.fixture
def clone(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to what a fresh clone is after `make demo`; what a page writes stays in it."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "build"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "model_repository").symlink_to(repository)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gateway(server: EmbeddedServer) -> Iterator[str]:
    """Run OpenAI's API and return its address."""
    front = Front("127.0.0.1", 0, drain_seconds=5)
    with front.running(make_app(GatewayOptions(url=server.grpc_url), None)):
        yield front.url.removeprefix("http://")


def here(text: str, server: EmbeddedServer, gateway: str) -> str:
    """Put the addresses of these tests in place of the default ones."""
    addresses = {"8000": server.http_url, "8001": server.grpc_url, "8002": server.metrics_url}
    for port, url in addresses.items():
        text = text.replace(f"127.0.0.1:{port}", url.split("/")[2])
    return text.replace(GATEWAY, gateway)


@pages_with(SHELL)
def test_the_commands_run_in_order(server, gateway, clone, page):
    """In one shell, without an active environment: exit code 0, something printed, no error in Triton's responses."""
    pasted = blocks(page, SHELL)
    script = PRELUDE + "".join(f"echo; echo '== {block.place}'\n{block.code}\n" for block in pasted)
    for tool in ("curl", "jq"):
        if re.search(rf"\b{tool}\b", script) and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    path = os.pathsep.join(folder for folder in os.get_exec_path() if not (Path(folder) / "florence2").exists())
    environment = os.environ | {"PATH": path, "FLORENCE2_URL": server.grpc_url}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here(UNTIL_CTRL_C.sub(r"starts \1", script), server, gateway)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    printed = dict(part.partition("\n")[::2] for part in f"\n{done.stdout}".split("\n== ")[1:])
    for block in pasted:
        assert printed[block.place].strip() and '"error"' not in printed[block.place], printed[block.place]
        assert ("generate_stream" in block.code) == ('"FINISH_REASON":""' in printed[block.place])


@pages_with(PYTHON)
def test_the_python_blocks_run_in_order(server, gateway, clone, page, capsys):
    """Pasted at one prompt, line by line."""
    prompt = Prompt({"__name__": "__main__"})
    for block in blocks(page, PYTHON):
        print(f"== {block.place}", file=sys.stderr)
        for line in here(block.code, server, gateway).splitlines():
            prompt.push(line)
        assert not prompt.push(""), f"{block.place} is not complete"
    printed = capsys.readouterr().out
    for words in PRINTED.get(str(page.relative_to(ROOT)), ("",)):
        assert words in printed and printed.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_outside_of_a_fence(page):
    """Commands are in fenced blocks; indented ones would not be found."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    hidden = HIDDEN.findall(prose)
    assert hidden == []


def test_the_readme_is_short():
    """One image and fewer than 150 lines: tables are in docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert text.count("![") == 1
